"""A node joins in the middle of the work and is taken away again: the pool follows, bits do not change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from actors.actor import Actor
from actors.pool import ActorPool, Sampled
from common.model.loading import load_policy
from common.model.weights import Weights
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from tests.tiny_config import make_config

pytestmark = [pytest.mark.faults, pytest.mark.slow]

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node with room for one actor."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


async def until(reached: Callable[[], bool], pool: ActorPool) -> None:
    """Wait until so much is reached."""
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < deadline, pool.in_work()
        await asyncio.sleep(0.1)


def tasks(stamp: PolicyStamp, first: int, count: int) -> list[PromptTask]:
    """Some prompts' tasks."""
    return [
        PromptTask(f"a cat {number}", 4, NoiseKey(7, "train", 0, number), stamp, True)
        for number in range(first, first + count)
    ]


def test_the_pool_grows_and_shrinks_with_the_cluster(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    actors = {"count": 3, "minimum": 1, "cpus": 1.0, "restarts": 0, "task_retries": 0, "timeout_s": 60.0}
    config = make_config(tiny_pipeline, tmp_path, {"actors": actors, "sampling.steps": 20})
    policy, steps = load_policy(config)
    weights = Weights.of(policy.trainable.parameters(), version=1, run_id="run")
    reference = ray.put(weights)

    async def run() -> list[Sampled]:
        pool = ActorPool(config)
        await pool.start(LIMIT_S)
        pool.grow()
        (first,) = pool.members
        loop = asyncio.get_running_loop()

        def begin(asked: list[PromptTask]) -> list[asyncio.Task[Sampled]]:
            return [loop.create_task(pool.sample(task, reference)) for task in asked]

        sampling = begin(tasks(weights.stamp, 0, 4))
        node = cluster.add_node(num_cpus=1)
        await until(lambda: len(pool.members) == 2, pool)
        second = pool.members[1]
        assert second.place.node == node.node_id

        sampling += begin(tasks(weights.stamp, 4, 6))
        await asyncio.sleep(0)
        await until(lambda: any(f"pid {second.place.pid}" in line for line in pool.in_work()), pool)
        cluster.remove_node(node, allow_graceful=False)
        await until(lambda: len(pool.members) == 1, pool)
        assert list(pool.members) == [first]
        done = await asyncio.wait_for(asyncio.gather(*sampling), LIMIT_S)
        assert pool.restarts == 1
        assert pool.redone >= 1
        pool.shutdown()
        return list(done)

    done = asyncio.run(run())
    alone = Actor.of(policy, steps)
    for task, one in zip(tasks(weights.stamp, 0, 10), done, strict=True):
        expected, _, _ = alone.sample(task, weights)
        got = ray.get(one.trajectory)
        np.testing.assert_array_equal(got.latents, expected.latents)
        np.testing.assert_array_equal(got.log_prob, expected.log_prob)
