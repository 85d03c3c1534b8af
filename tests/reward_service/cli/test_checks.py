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

HERE = "tests.reward_service.cli.test_checks"
SHARED = "tests.reward_service.scorers"


class _Brightness:
    version = "1"
    digest = "abc"

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return images.mean(axis=(1, 2, 3)) / 255.0


class Restless(_Brightness):
    """Adds noise."""

    rng = np.random.default_rng(0)

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super().score(prompts, images) + self.rng.normal(size=len(images))


class HonestlyRestless(Restless):
    """Says that it adds noise."""

    deterministic = False


class NotFinite(_Brightness):
    """NaN for an image that is alone."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super().score(prompts, images) + (np.nan if len(images) == 1 else 0.0)


class OneShort(_Brightness):
    """A number too few where there are several."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super().score(prompts, images)[: max(1, len(images) - 1)]


class Huge(_Brightness):
    """In millions."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super().score(prompts, images) * 1e7


class Constant(_Brightness):
    """Likes all."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.ones(len(images))


class MainThreadOnly(_Brightness):
    """Cannot be called from another thread."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("no event loop in this thread")
        return super().score(prompts, images)


class FirstPlace:
    """A judge who prefers the first of two."""

    version = "1"
    digest = ""

    def compare_pairs(
        self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        light = images.mean(axis=(1, 2, 3)) / 255.0
        return light[pairs[:, 0]] - light[pairs[:, 1]] + 0.3


class Lopsided:
    """A matrix that is not antisymmetric."""

    version = "1"
    digest = ""

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.abs(np.subtract.outer(images.mean(axis=(1, 2, 3)), images.mean(axis=(1, 2, 3))))


def findings(scorer: str, **settings: Any) -> dict[str, Finding]:
    return {one.check: one for one in check_reward(ServedReward(scorer=scorer, **settings), [])}


def verdicts(scorer: str, verdict: Verdict) -> set[str]:
    return {name for name, one in findings(scorer).items() if one.verdict is verdict}


@pytest.mark.parametrize("scorer", ["jpeg_compressibility", f"{SHARED}:GreenDuel", f"{SHARED}:Duel"])
def test_sound_scorers_pass_every_check(scorer: str) -> None:
    found = findings(scorer)
    assert list(found) == ["built", *(check.name for check in CHECKS)]
    assert {one.verdict for one in found.values()} == {Verdict.OK}


@pytest.mark.parametrize(
    ("scorer", "failed"),
    [
        (f"{HERE}:Restless", {"same again", "batch size", "order"}),
        (f"{SHARED}:Careless", {"batch size"}),
        (f"{HERE}:NotFinite", {"answers"}),
        (f"{HERE}:OneShort", {"finite, one each", "same again", "batch size", "order", "another thread"}),
        (f"{HERE}:FirstPlace", {"order"}),
        (f"{HERE}:MainThreadOnly", {"another thread"}),
    ],
)
def test_a_broken_contract_is_found(scorer: str, failed: set[str]) -> None:
    assert verdicts(scorer, Verdict.FAILED) - {"magnitude", "time"} == failed


def test_a_failure_comes_with_what_it_was_and_what_to_do() -> None:
    same = findings(f"{HERE}:Restless")["same again"]
    assert "other numbers for the same images" in same.detail
    assert "deterministic = False" in same.advice
    assert "not antisymmetric" in findings(f"{HERE}:Lopsided")["finite, one each"].detail


def test_noise_that_is_declared_is_no_failure() -> None:
    assert not verdicts(f"{HERE}:HonestlyRestless", Verdict.FAILED)
    assert verdicts(f"{HERE}:HonestlyRestless", Verdict.SKIPPED) == {"same again", "batch size", "order"}


def test_what_does_not_answer_is_not_asked_again() -> None:
    found = findings(f"{HERE}:NotFinite")
    assert {one.verdict for name, one in found.items() if name not in ("built", "answers")} == {
        Verdict.SKIPPED
    }


def test_orders_of_magnitude_are_noted() -> None:
    huge = findings(f"{HERE}:Huge")["magnitude"]
    assert (huge.verdict, "e-07" in huge.advice) == (Verdict.NOTE, True)
    constant = findings(f"{HERE}:Constant")["magnitude"]
    assert (constant.verdict, "teaches nothing" in constant.advice) == (Verdict.NOTE, True)


def test_slowness_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_SLOW_S", 1e-9)
    slow = findings(f"{SHARED}:Redness")["time"]
    assert (slow.verdict, "replicas" in slow.advice) == (Verdict.NOTE, True)


def test_what_cannot_be_built_is_one_finding() -> None:
    (found,) = findings(f"{SHARED}:Unbuildable").values()
    assert (found.verdict, "no such model on this machine" in found.detail) == (Verdict.FAILED, True)


def test_a_scorer_is_tested_with_the_prompts_it_names_unless_others_are_given() -> None:
    assert {one.verdict for one in findings(f"{SHARED}:Lookup").values()} == {Verdict.OK}
    served = ServedReward(scorer=f"{SHARED}:Lookup")
    assert {one.verdict for one in check_reward(served, ["a bench"])} == {Verdict.OK}
    assert "KeyError" in check_reward(served, ["a cat"])[1].detail


def test_a_budget_of_pairs_is_kept() -> None:
    assert {one.verdict for one in findings(f"{SHARED}:Duel", pairs=4).values()} == {Verdict.OK}
    few = findings(f"{SHARED}:Duel", pairs=2)["finite, one each"]
    assert "cannot connect 5" in few.detail
