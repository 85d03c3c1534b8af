"""Groups get the objective's advantages in prompt order, and its memory is the finished epochs' alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
import pytest

from common.config.objectives import DdpoSection, GrpoSection, PrdpSection
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.loop.advantages import Advantages
from driver.loop.rollouts import Group
from learner.objectives.history import RewardHistory
from learner.objectives.registry import build_objective
from tests.scored_groups import pointwise

NOTHING = cast(Any, None)
STAMP = PolicyStamp(0, "", "run")


def group(prompt: str, rewards: list[float]) -> Group:
    task = PromptTask(prompt, len(rewards), NoiseKey(0, "train", 0, 0), STAMP, False)
    return Group(task, None, NOTHING, None, pointwise(np.array(rewards), {}, ()), NOTHING)


EPOCHS = [[group("a cat", [0.1, 0.5]), group("the sea", [0.9, 0.2])], [group("a cat", [0.3, 0.8])]]


async def _source(groups: list[Group], begun: list[str]) -> AsyncIterator[Group]:
    for one in groups:
        begun.append(one.task.prompt)
        yield one


async def _epoch(advantages: Advantages, groups: list[Group]) -> tuple[list[Group], list[int]]:
    """The epoch's groups, and how many had come from the source when each was there."""
    begun: list[str] = []
    found, waited = [], []
    async for one in advantages.of(_source(groups, begun)):
        found.append(one)
        waited.append(len(begun))
    return found, waited


@pytest.mark.parametrize(
    ("section", "waits"),
    [(PrdpSection(), [1, 2]), (GrpoSection(), [1, 2]), (DdpoSection(history_minimum=4), [2, 2])],
)
def test_each_group_waits_for_what_its_advantages_need_and_no_longer(section: Any, waits: list[int]) -> None:
    objective = build_objective(section, 1)
    found, waited = asyncio.run(_epoch(Advantages(objective), EPOCHS[0]))
    assert waited == waits
    scores = [(one.task.prompt, one.score.rewards) for one in EPOCHS[0]]
    expected, _ = objective.advantages(scores, RewardHistory())
    for one, wanted in zip(found, expected, strict=True):
        assert (one.advantages is None) == (wanted is None)
        assert wanted is None or np.array_equal(one.advantages, wanted)


def test_an_epoch_that_comes_again_or_a_resumed_run_gets_the_same_bits() -> None:
    objective = build_objective(DdpoSection(history_minimum=4), 1)
    straight = Advantages(objective)
    asyncio.run(_epoch(straight, EPOCHS[0]))
    straight.finish_epoch()
    saved = json.loads(json.dumps(straight.finished.rewards))
    expected, _ = asyncio.run(_epoch(straight, EPOCHS[1]))
    assert json.loads(json.dumps(straight.finished.rewards)) == saved  # not before the epoch is finished
    again, _ = asyncio.run(_epoch(straight, EPOCHS[1]))
    resumed = Advantages(objective)
    resumed.begin(saved)
    later, _ = asyncio.run(_epoch(resumed, EPOCHS[1]))
    fresh, _ = asyncio.run(_epoch(Advantages(objective), EPOCHS[1]))
    for one in (again, later):
        assert np.array_equal(one[0].advantages, expected[0].advantages)
    assert not np.array_equal(fresh[0].advantages, expected[0].advantages)
