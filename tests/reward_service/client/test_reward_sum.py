"""The sum of rewards whose answers the test writes, in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.services import RewardServiceSection
from common.trajectory import GroupScore, ScorerStamp
from reward_service.client.reward_client import RewardClient
from reward_service.client.reward_sum import RewardSum
from reward_service.client.transport import FailedError
from reward_service.contract.results import RewardFailure
from tests.reward_service.client.scripted import BUSY_S, Hang, Images, Say, ScriptedTransport, scores
from tests.virtual_time import run

WEIGHTS = {"a": 2.0, "b": -0.5}
NAMES = ("a", "b", "gold")
SECTION = RewardServiceSection(retries=1)


def make_sum(**scripts: dict[str, list[Say]]) -> tuple[RewardSum, dict[str, ScriptedTransport]]:
    """Of the rewards in NAMES, with the script of each by prompt."""
    transports = {
        name: ScriptedTransport(scripts.get(name, {}), window=8, stamp=ScorerStamp(name, "1", ""))
        for name in NAMES
    }
    clients = {name: RewardClient(name, transport, SECTION) for name, transport in transports.items()}
    return RewardSum(clients, WEIGHTS, ExitStack()), transports


def value_of(name: str, number: int) -> float:
    """The first image's reward; the second's is one more."""
    return float(10 * number + NAMES.index(name))


@settings(max_examples=40, deadline=None)
@given(failing=st.sets(st.integers(0, 14)), golds=st.sets(st.integers(0, 4)), data=st.data())
def test_each_group_has_its_own_sum_whatever_is_asked_beside_it(
    failing: set[int], golds: set[int], data: st.DataObject
) -> None:
    scripts: dict[str, dict[str, list[Say]]] = {
        name: {
            f"prompt {row}": [FailedError("out")]
            if 3 * row + place in failing
            else [scores([value_of(name, row), value_of(name, row) + 1.0], name=name)]
            for row in range(5)
        }
        for place, name in enumerate(NAMES)
    }
    rewards, transports = make_sum(**scripts)
    for transport in transports.values():
        transport.second = data.draw(st.floats(0.0, 9.0))

    async def all_groups() -> list[GroupScore | RewardFailure]:
        asked = (rewards.score(f"prompt {row}", Images(), 2, row in golds) for row in range(5))
        answers = await asyncio.gather(*asked)
        if not failing:  # all at once
            took_s = max(transports[name].second for name in (NAMES if golds else NAMES[:2]))
            assert asyncio.get_running_loop().time() == pytest.approx(took_s)
        return answers

    found = run(all_groups())
    assert rewards.outstanding == 0
    for number, score in enumerate(found):
        asked = NAMES if number in golds else NAMES[:2]
        bad = [name for name in asked if 3 * number + NAMES.index(name) in failing]
        if bad:
            assert isinstance(score, RewardFailure)
            assert all(f"{name}: " in score.reason for name in bad)
            continue
        assert isinstance(score, GroupScore)
        first = 2.0 * value_of("a", number) - 0.5 * value_of("b", number)
        np.testing.assert_allclose(score.rewards, [first, first + 1.5])
        np.testing.assert_allclose(score.differences, [[0.0, -1.5], [1.5, 0.0]])
        assert list(score.parts) == list(asked)
        assert [stamp.name for stamp in score.scorers] == list(asked)
    # Each failing group is sent once again, SECTION.retries, to each reward that failed it.
    assert rewards.retries == sum(
        3 * row + place in failing for row in range(5) for place in range(3 if row in golds else 2)
    )


def test_what_is_out_is_told_by_reward_and_withdrawn_where_nobody_waits() -> None:
    async def withdrawn() -> None:
        rewards, transports = make_sum(a={"a cat": [Hang()]}, b={"a cat": [scores(name="b")]})
        asked = asyncio.create_task(rewards.score("a cat", Images(), 2))
        await asyncio.sleep(2.0)
        assert rewards.asked() == {"a": 1, "b": 0, "gold": 0}
        assert rewards.in_work() == ["reward a has 'a cat'"]
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        assert transports["a"].withdrawn == ["a cat"]
        assert rewards.outstanding == 0
        assert rewards.asked() == {"a": 0, "b": 0, "gold": 0}

    run(withdrawn())


def test_each_group_has_the_stamps_of_its_own_scores_and_the_sum_tells_what_happened() -> None:
    async def five() -> None:
        versions = ("1", "2", "1", "2", "3")
        rewards, _ = make_sum(
            a={"a cat": [scores(version=version, name="a") for version in versions]},
            b={"a cat": [scores(name="b")]},
        )
        for version in versions:
            score = await rewards.score("a cat", Images(), 2)
            assert isinstance(score, GroupScore)
            assert score.scorers == (ScorerStamp("a", version, ""), ScorerStamp("b", "1", ""))
        assert rewards.retries == 0
        reports = rewards.take_reports()
        assert {name: report.groups for name, report in reports.items()} == {"a": 5, "b": 5, "gold": 0}
        assert sum(report.busy_s for report in reports.values()) == 10 * BUSY_S
        assert [ask.reward for ask in rewards.take_asks()] == ["a"] * 5 + ["b"] * 5

    run(five())
