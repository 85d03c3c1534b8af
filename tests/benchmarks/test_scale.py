"""Simulated actors and ranks behave as the driver expects."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from benchmarks.scale_parts import ActorHost, LearnerHost, Sizes
from common.model.weights import Weights
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from tests.scored_groups import pointwise

SIZES = Sizes(images=2, steps=4, latent=4, pixels=8, weight_bytes=16)
STAMP = PolicyStamp(3, "d", "r")


def task_of(index: int) -> PromptTask:
    """Tasks differ in their prompt's index."""
    return PromptTask("a cat", 2, NoiseKey(0, "train", 1, index), STAMP, with_reference=True)


async def sampled(host: ActorHost, seat: int, index: int) -> Any:
    """One task done by one seat."""
    return await host.sample(seat, task_of(index), Weights(STAMP, {}))


def test_an_actor_does_one_task_at_a_time_and_many_actors_work_at_once() -> None:
    async def both() -> tuple[float, float]:
        host = ActorHost(SIZES, seconds=0.1, jitter=0.0)
        began = time.monotonic()
        await asyncio.gather(*(sampled(host, seat, seat) for seat in range(20)))
        at_once = time.monotonic() - began
        await asyncio.gather(*(sampled(host, 0, index) for index in range(3)))
        return at_once, time.monotonic() - began - at_once

    at_once, in_turn = asyncio.run(both())
    assert 0.1 <= at_once < 1.0
    assert in_turn >= 0.29


def test_what_an_actor_returns_has_the_real_size_and_names_its_task() -> None:
    trajectory, pictures, report = asyncio.run(sampled(ActorHost(SIZES, 0.0, 0.0), 5, 7))
    assert trajectory.latents.nbytes + pictures.nbytes == SIZES.group_bytes
    assert trajectory.noise == task_of(7).noise
    assert trajectory.stamp == report.stamp == STAMP
    assert report.nbytes == trajectory.nbytes + pictures.nbytes


def test_the_learner_measures_from_sampled_to_accumulated() -> None:
    async def learn() -> tuple[list[float], list[PolicyStamp], list[int]]:
        host = LearnerHost(SIZES, seconds=0.05)
        trajectory, _, _ = await sampled(ActorHost(SIZES, 0.0, 0.0), 0, 0)
        score = pointwise(np.array([0.0, 1.0]), {}, ()), None
        await asyncio.sleep(0.05)
        await asyncio.gather(*(host.accumulate(rank, [score], trajectory) for rank in (0, 0, 1)))
        reports = [await host.finish_update(rank) for rank in (0, 1)]
        stamp, weights = await host.publish(0)
        stamps = [stamp, weights.stamp, await host.agree(1)]
        return await host.take_latencies(), stamps, [one.version for one in reports]

    latencies, stamps, versions = asyncio.run(learn())
    assert len(latencies) == 3
    assert min(latencies) >= 0.1
    assert 0.15 <= max(latencies) < 2.0
    assert versions == [1, 1]
    assert len(set(stamps)) == 1
