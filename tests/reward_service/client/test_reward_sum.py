"""The mix over channels that answer when and what the test says."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.services import RewardServiceSection
from common.errors import RewardError
from common.trajectory import GroupScore, ScorerStamp
from reward_service.client.asks import Ask
from reward_service.client.ledger import PendingScore
from reward_service.client.report import RewardReport
from reward_service.client.reward_sum import RewardSum
from reward_service.client.transport import Request
from reward_service.contract.results import Outcome, RewardFailure, RewardScores

IMAGES: Any = cast(Any, None)
WEIGHTS = {"a": 2.0, "b": -0.5}
NAMES = ("a", "b", "gold")


class Scripted:
    """A channel without a line: the test answers in its place."""

    retries = 1
    busy_s = 0.5

    def __init__(self, name: str) -> None:
        self.stamp = ScorerStamp(name, "1", "")
        self.asked: dict[PendingScore, Request] = {}
        self.ready: list[tuple[PendingScore, Outcome]] = []

    def submit(self, pending: PendingScore, request: Request) -> None:
        self.asked[pending] = request

    def refs(self) -> list[Any]:
        return []

    def poll_s(self) -> float:
        return 0.0

    def collect(self) -> list[tuple[PendingScore, Outcome]]:
        ready, self.ready = self.ready, []
        return ready

    @property
    def outstanding(self) -> int:
        return len(self.asked)

    def take_report(self) -> RewardReport:
        return RewardReport(groups=len(self.asked))

    def take_asks(self) -> list[Ask]:
        return [Ask(pending.number, self.stamp.name, 1.0, 2.0, 0.5) for pending in self.asked]

    def answer(self, pending: PendingScore, outcome: Outcome) -> None:
        self.ready.append((pending, outcome))


def value_of(name: str, number: int) -> float:
    """The first picture's reward; the second's is one more."""
    return float(10 * number + NAMES.index(name))


def part(name: str, number: int, version: str = "1") -> RewardScores:
    rewards = value_of(name, number) + np.array([0.0, 1.0])
    return RewardScores(rewards, rewards[:, None] - rewards[None, :], 0.0, ScorerStamp(name, version, ""))


def make_mix(capacity: int = 8) -> tuple[RewardSum, dict[str, Scripted]]:
    channels = {name: Scripted(name) for name in NAMES}
    section = RewardServiceSection(queue_groups=capacity)
    return RewardSum(channels, WEIGHTS, section, ExitStack()), channels


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(15)), golds=st.sets(st.integers(0, 4)), data=st.data())
def test_scores_do_not_depend_on_the_order_of_answers(
    order: list[int], golds: set[int], data: st.DataObject
) -> None:
    mix, channels = make_mix()
    receipts = [mix.submit(f"prompt {row}", IMAGES, 2, row in golds) for row in range(5)]
    failing = data.draw(st.sets(st.integers(0, 14)))
    found: dict[PendingScore, object] = {}
    for step in order:
        name, number = NAMES[step % 3], step // 3
        if receipts[number] not in channels[name].asked:
            continue
        outcome = RewardFailure(f"out {step}") if step in failing else part(name, number)
        channels[name].answer(receipts[number], outcome)
        if data.draw(st.booleans()):
            found |= dict(mix.collect())
    found |= dict(mix.collect())
    assert set(found) == set(receipts)
    assert mix.outstanding == 0
    for number, receipt in enumerate(receipts):
        asked = NAMES if number in golds else NAMES[:2]
        bad = [name for name in asked if 3 * number + NAMES.index(name) in failing]
        score = found[receipt]
        if bad:
            assert isinstance(score, RewardFailure)
            assert all(f"{name}: out" in score.reason for name in bad)
            continue
        assert isinstance(score, GroupScore)
        first = 2.0 * value_of("a", number) - 0.5 * value_of("b", number)
        np.testing.assert_allclose(score.rewards, [first, first + 1.5])
        np.testing.assert_allclose(score.differences, [[0.0, -1.5], [1.5, 0.0]])
        assert list(score.parts) == list(asked)
        assert [stamp.name for stamp in score.scorers] == list(asked)
    failures = sum(isinstance(score, RewardFailure) for score in found.values())
    assert (mix.counters().scored, mix.counters().dropped) == (5 - failures, failures)


@pytest.fixture
def mix() -> tuple[RewardSum, dict[str, Scripted]]:
    return make_mix(capacity=2)


def test_a_group_waits_for_all_its_parts(mix: tuple[RewardSum, dict[str, Scripted]]) -> None:
    asked, channels = mix
    receipt = asked.submit("a cat", IMAGES, 2)
    channels["a"].answer(receipt, part("a", 0))
    assert asked.collect() == []
    assert asked.outstanding == 1
    assert asked.wait(0.01) == []
    channels["b"].answer(receipt, part("b", 0))
    assert [pending for pending, _ in asked.wait(1.0)] == [receipt]


def test_gold_is_asked_on_request_only(mix: tuple[RewardSum, dict[str, Scripted]]) -> None:
    asked, channels = mix
    asked.submit("a cat", IMAGES, 2)
    asked.submit("a dog", IMAGES, 2, with_gold=True)
    assert [len(channels[name].asked) for name in NAMES] == [2, 2, 1]
    assert asked.take_reports()["gold"].groups == 1


def test_no_more_groups_than_allowed_wait(mix: tuple[RewardSum, dict[str, Scripted]]) -> None:
    asked, channels = mix
    receipts = [asked.submit("a cat", IMAGES, 2) for _ in range(2)]
    assert asked.room == 0
    with pytest.raises(RewardError, match=r"queue_groups \(2\)"):
        asked.submit("a cat", IMAGES, 2)
    for name in WEIGHTS:
        channels[name].answer(receipts[0], part(name, 0))
    asked.collect()
    assert asked.room == 1


def test_swaps_are_counted_and_the_newest_version_is_told(mix: tuple[RewardSum, dict[str, Scripted]]) -> None:
    asked, channels = mix
    for number, version in enumerate(("1", "2", "1", "2", "3")):
        receipt = asked.submit("a cat", IMAGES, 2)
        channels["a"].answer(receipt, part("a", number, version))
        channels["b"].answer(receipt, part("b", number))
        ((_, score),) = asked.collect()
        assert isinstance(score, GroupScore)
        assert score.scorers == (ScorerStamp("a", version, ""), ScorerStamp("b", "1", ""))
    assert asked.counters().swaps == 2
    assert asked.stamps() == (ScorerStamp("a", "3", ""), ScorerStamp("b", "1", ""))
    assert (asked.counters().retries, asked.counters().busy_s) == (3, 1.5)


def test_the_end_frees_what_was_started() -> None:
    ended: list[str] = []
    stack = ExitStack()
    stack.callback(ended.append, "all")
    RewardSum({"a": Scripted("a")}, {"a": 1.0}, RewardServiceSection(), stack).shutdown()
    assert ended == ["all"]
