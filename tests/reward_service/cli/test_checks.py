"""What `check` finds about scorers that keep their contract and about those that do not."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reward_service.cli import checks
from reward_service.cli.checks import CHECKS, Finding, Verdict, check_reward
from reward_service.contract.settings import ServedReward
from tests.reward_service.scorers import Duel, Redness

HERE = "tests.reward_service.cli.test_checks"
SHARED = "tests.reward_service.scorers"


class Restless(Redness):
    """Adds noise."""

    rng = np.random.default_rng(0)

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super().score(prompts, images) + self.rng.normal(size=len(images))


class HonestlyRestless(Restless):
    """Says that it adds noise."""

    deterministic = False


class NotFinite(Redness):
    """NaN for an image that is alone."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super().score(prompts, images) + (np.nan if len(images) == 1 else 0.0)


class OneShort(Redness):
    """A number too few where there are several."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super().score(prompts, images)[: max(1, len(images) - 1)]


class Huge(Redness):
    """In millions."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super().score(prompts, images) * 1e7


class Constant(Redness):
    """Likes all."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.ones(len(images))


class MainThreadOnly(Redness):
    """Cannot be called from another thread."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("no event loop in this thread")
        return super().score(prompts, images)


class FirstPlace(Duel):
    """A judge who prefers the first of two."""

    def compare_pairs(
        self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return super().compare_pairs(prompt, images, pairs) + 0.3


def findings(scorer: str, **settings: Any) -> dict[str, Finding]:
    return {one.check: one for one in check_reward(ServedReward(scorer=scorer, **settings), [])}


def verdicts(scorer: str, verdict: Verdict) -> set[str]:
    return {name for name, one in findings(scorer).items() if one.verdict is verdict}


def test_noise_that_is_declared_is_no_failure_and_what_does_not_answer_is_not_asked_again() -> None:
    assert not verdicts(f"{HERE}:HonestlyRestless", Verdict.FAILED)
    assert verdicts(f"{HERE}:HonestlyRestless", Verdict.SKIPPED) == {"same again", "batch size", "order"}
    assert len(verdicts(f"{HERE}:NotFinite", Verdict.SKIPPED)) == len(CHECKS) - 1
    assert len(verdicts(f"{HERE}:OneShort", Verdict.SKIPPED)) == len(CHECKS) - 2


@pytest.mark.parametrize(
    ("scorer", "settings", "check", "verdict", "said"),
    [
        (f"{HERE}:Restless", {}, "same again", Verdict.FAILED, "deterministic = False"),
        (f"{SHARED}:Duel", {"pairs": 2}, "finite, one each", Verdict.OK, "groups of 1, 2, 3 images"),
        (f"{SHARED}:Unbuildable", {}, "built", Verdict.FAILED, "no such model"),
        (f"{HERE}:Huge", {}, "magnitude", Verdict.NOTE, "e-07"),
        (f"{HERE}:Constant", {}, "magnitude", Verdict.NOTE, "same number"),
        (f"{SHARED}:Redness", {}, "time", Verdict.NOTE, "replicas"),
    ],
)
def test_a_finding_comes_with_what_it_was_or_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    scorer: str,
    settings: dict[str, Any],
    check: str,
    verdict: Verdict,
    said: str,
) -> None:
    monkeypatch.setattr(checks, "_SLOW_S", 1e-9)
    found = findings(scorer, **settings)[check]
    assert found.verdict is verdict
    assert said in found.detail + found.advice


@pytest.mark.parametrize(
    ("scorer", "pairs"),
    [
        ("jpeg_compressibility", 0),
        (f"{SHARED}:GreenDuel", 0),
        *((f"{SHARED}:Duel", pairs) for pairs in (0, 1, 4)),
    ],
)
def test_sound_scorers_pass_every_check(scorer: str, pairs: int) -> None:
    found = findings(scorer, pairs=pairs)
    assert list(found) == ["built", *(check.name for check in CHECKS)]
    assert {one.verdict for one in found.values()} == {Verdict.OK}


@pytest.mark.parametrize(
    ("scorer", "failed"),
    [
        (f"{HERE}:Restless", {"same again", "batch size", "order"}),
        (f"{SHARED}:Careless", {"batch size"}),
        (f"{HERE}:NotFinite", {"answers"}),
        (f"{HERE}:OneShort", {"finite, one each"}),
        (f"{HERE}:FirstPlace", {"order"}),
        (f"{HERE}:MainThreadOnly", {"another thread"}),
    ],
)
def test_a_broken_contract_is_found(scorer: str, failed: set[str]) -> None:
    assert verdicts(scorer, Verdict.FAILED) - {"magnitude", "time"} == failed


def test_a_scorer_is_tested_with_the_prompts_it_names_unless_others_are_given() -> None:
    assert {one.verdict for one in findings(f"{SHARED}:Lookup").values()} == {Verdict.OK}
    served = ServedReward(scorer=f"{SHARED}:Lookup")
    assert {one.verdict for one in check_reward(served, ["a bench"])} == {Verdict.OK}
    assert "KeyError" in check_reward(served, ["a cat"])[1].detail
