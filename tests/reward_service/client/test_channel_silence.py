"""How long a channel waits for a reward that answers nothing, and for one that answers others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import ray

from common.config.services import RewardServiceSection
from common.trajectory import ScorerStamp
from reward_service.client import channel as channel_module
from reward_service.client.channel import Channel, PartAnswer
from reward_service.client.ledger import PendingScore
from reward_service.client.transport import LineError, LostError, RefusedError, Request
from reward_service.contract.results import NoShadow, Reply, RewardFailure, RewardScores

IMAGES = cast(ray.ObjectRef, "a reference that nobody looks behind")
STAMP = ScorerStamp("size", "1", "")
REPLY = Reply(RewardScores(np.zeros(2), np.zeros((2, 2)), 0.0, STAMP), 0.1, NoShadow())
OUTAGE_S = 300.0
FULL = RefusedError("full", wait_s=0.0)



class Clock:
    """The seconds that pass are those that the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


class _Sending:
    def __init__(self, prompt: str, queued: set[str]) -> None:
        self._prompt = prompt
        self._queued = queued

    def taken(self, wait_s: float) -> list[Any]:
        return [] if self._prompt in self._queued else [self._prompt]

    def cancel(self) -> None:
        return None


class FakeLine:
    """Prompts in `queued` are taken by nobody, those in `troubles` come to it, all others are answered."""

    window = 4
    limit_s = 1000.0
    answers_as = STAMP

    def __init__(self) -> None:
        self.queued: set[str] = set()
        self.troubles: dict[str, LineError] = {}
        self.asked: list[str] = []

    def send(self, request: Request) -> _Sending:
        self.asked.append(request.prompt)
        return _Sending(request.prompt, self.queued)

    def read(self, reference: Any, held_s: float) -> Reply:
        if reference in self.troubles:
            raise self.troubles[reference]
        return REPLY

    def state(self) -> str:
        return "It is away."


class Bench:
    """A channel over a fake line, by a clock of the test's own."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.line = FakeLine()
        section = RewardServiceSection(outage_s=OUTAGE_S, retries=2)
        self.channel = Channel("size", self.line, section)
        self._number = 0

    def submit(self, *prompts: str) -> None:
        """Ask for groups, each named by its prompt."""
        for prompt in prompts:
            self._number += 1
            self.channel.submit(PendingScore(self._number, prompt), Request(prompt, IMAGES, 2))

    def after(self, seconds: float) -> dict[str, object]:
        """What is told in so many seconds, by prompt."""
        answers: list[PartAnswer] = []
        end_at = self.clock.now + seconds
        while self.clock.now < end_at:
            answers += self.channel.collect()
            self.clock.now += 1.0
        return {pending.prompt: outcome for pending, outcome in answers}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    def all_are_ready(references: Sequence[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return list(references), []

    clock = Clock()
    monkeypatch.setattr(channel_module, "time", clock)
    monkeypatch.setattr(channel_module.ray, "wait", all_are_ready)
    return Bench(clock)


def keep_asking(bench: Bench, seconds: float) -> dict[str, object]:
    """So many seconds in which other groups are asked about and answered."""
    answers: dict[str, object] = {}
    for second in range(0, int(seconds), 10):
        bench.submit(f"other {second}")
        answers |= bench.after(10.0)
    return answers


def test_a_group_in_serves_queue_waits_while_others_are_answered(bench: Bench) -> None:
    bench.line.queued.add("unlucky")
    bench.submit("unlucky")
    answers = keep_asking(bench, 3 * OUTAGE_S)
    assert len(answers) == 90
    assert all(isinstance(answer, RewardScores) for answer in answers.values())
    bench.line.queued.clear()
    assert isinstance(bench.after(2.0)["unlucky"], RewardScores)


def test_a_group_that_nobody_answers_in_time_is_asked_again_while_others_are_answered(bench: Bench) -> None:
    bench.line.troubles["unlucky"] = FULL
    bench.submit("unlucky")
    assert all(isinstance(answer, RewardScores) for answer in keep_asking(bench, 3 * OUTAGE_S).values())
    assert bench.line.asked.count("unlucky") > 3
    bench.line.troubles.clear()
    assert isinstance(bench.after(10.0)["unlucky"], RewardScores)
    assert bench.channel.retries == 0


@pytest.mark.parametrize("is_refused", [False, True])
def test_groups_are_given_up_once_nothing_was_answered_for_the_outage(
    bench: Bench, is_refused: bool
) -> None:
    bench.submit("answered")
    bench.after(1.0)
    bench.line.queued |= set() if is_refused else {"a", "b"}
    bench.line.troubles |= {"a": FULL, "b": FULL} if is_refused else {}
    bench.submit("a", "b")
    assert bench.after(OUTAGE_S - 10.0) == {}
    answers = bench.after(30.0)
    assert set(answers) == {"a", "b"}
    for answer in answers.values():
        assert isinstance(answer, RewardFailure)
        assert "nothing was answered for 300 s (reward_service.outage_s)" in answer.reason
        assert "It is away." in answer.reason


def test_time_in_which_nothing_was_asked_is_no_silence(bench: Bench) -> None:
    bench.line.troubles |= {"a": FULL, "b": FULL}
    bench.submit("a")
    assert set(bench.after(OUTAGE_S + 10.0)) == {"a"}
    bench.after(10 * OUTAGE_S)
    bench.submit("b")
    assert bench.after(OUTAGE_S - 10.0) == {}
    bench.line.troubles.clear()
    assert isinstance(bench.after(10.0)["b"], RewardScores)


def test_a_group_that_kills_its_scorers_for_long_leaves_the_others_their_time(bench: Bench) -> None:
    bench.line.troubles["deadly"] = LostError("died")
    bench.submit("deadly")
    for _ in range(2):
        bench.clock.now += 0.9 * OUTAGE_S
        bench.after(1.0)
    bench.line.troubles["a"] = FULL
    bench.submit("a")
    assert "a" not in bench.after(0.9 * OUTAGE_S)
    bench.line.troubles.clear()
    assert isinstance(bench.after(10.0)["a"], RewardScores)
