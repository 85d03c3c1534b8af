"""Kill real actor processes while they sample: the run goes on and its result is the same bits."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.pool import ActorPool, Sampled
from common.config.schema import Config
from common.errors import StuckError, WeightsError
from common.model.loading import load_policy
from common.model.weights import Weights
from common.trajectory import NoiseKey, PolicyStamp, PromptTask, TrajectoryGroup
from tests.tiny_config import make_config

pytestmark = pytest.mark.faults

LIMIT_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    yield
    ray.shutdown()


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> Config:
    return make_config(
        tiny_pipeline,
        tmp_path,
        {"actors": {"count": 2, "minimum": 2, "cpus": 0.5, "restarts": 3}, "sampling.steps": 30},
    )


def tasks(stamp: PolicyStamp, count: int) -> list[PromptTask]:
    """Some prompts' tasks."""
    return [
        PromptTask(f"a cat {number}", 4, NoiseKey(7, "train", 0, number), stamp, True)
        for number in range(count)
    ]


async def sample(
    pool: ActorPool, asked: Sequence[PromptTask], weights: ray.ObjectRef, kill: bool
) -> list[Sampled]:
    """Have them all sampled; kill: an actor meanwhile."""
    async with asyncio.timeout(LIMIT_S):
        await pool.start(LIMIT_S)
        sampling = asyncio.gather(*(pool.sample(task, weights) for task in asked))
        await asyncio.sleep(0)
        if kill:
            os.kill(pool.members[0].place.pid, signal.SIGKILL)
        try:
            return list(await sampling)
        finally:
            pool.shutdown()


def test_tasks_of_a_killed_actor_are_redone_to_the_same_bits(config: Config) -> None:
    policy, _ = load_policy(config)
    weights = Weights.of(policy.trainable.parameters(), version=1, run_id="run")
    reference = ray.put(weights)

    async def run(kill: bool) -> list[TrajectoryGroup]:
        pool = ActorPool(config)
        done = await sample(pool, tasks(weights.stamp, 8), reference, kill)
        assert pool.restarts == int(kill)
        assert (pool.redone > 0) == kill
        return [ray.get(sampled.trajectory) for sampled in done]

    for first, second in zip(asyncio.run(run(False)), asyncio.run(run(True)), strict=True):
        np.testing.assert_array_equal(first.latents, second.latents)
        np.testing.assert_array_equal(first.log_prob, second.log_prob)
        np.testing.assert_array_equal(first.log_ratio, second.log_ratio)


def test_actors_that_die_again_and_again_stop_the_run_with_the_reason(config: Config) -> None:
    changes = {"count": 1, "minimum": 1, "restarts": 0}
    limited = config.model_copy(update={"actors": config.actors.model_copy(update=changes)})
    policy, _ = load_policy(limited)
    weights = Weights.of(policy.trainable.parameters(), version=1, run_id="run")

    async def run() -> None:
        await sample(ActorPool(limited), tasks(weights.stamp, 1), ray.put(weights), kill=True)

    with pytest.raises(StuckError, match=r"actors\.restarts = 0"):
        asyncio.run(run())


def test_an_actor_refuses_weights_that_are_not_what_its_task_names(config: Config) -> None:
    policy, _ = load_policy(config)
    weights = Weights.of(policy.trainable.parameters(), version=1, run_id="run")
    newer = PolicyStamp(version=2, digest=weights.stamp.digest, run_id="run")
    name = sorted(weights.arrays)[0]
    altered = {**weights.arrays, name: weights.arrays[name] + 1}
    truncated = {**weights.arrays, name: weights.arrays[name][1:]}
    refused = [
        (newer, weights, "Asked to sample with version 2"),
        (weights.stamp, replace(weights, arrays=altered), "has been altered"),
        (weights.stamp, replace(weights, arrays=truncated), f"Weight {name}"),
    ]

    async def run() -> None:
        pool = ActorPool(config)
        await pool.start(LIMIT_S)
        for stamp, given, reason in refused:
            with pytest.raises(WeightsError, match=reason):
                await pool.sample(tasks(stamp, 1)[0], ray.put(given))
        pool.shutdown()

    asyncio.run(run())
