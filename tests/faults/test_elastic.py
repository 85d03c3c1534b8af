"""A node joins in the middle of the work and is taken away again: the pool follows, bits do not change."""

from __future__ import annotations

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
from common.errors import StuckError
from common.model.loading import load_policy
from common.model.weights import Weights
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.loop.services import await_actors
from tests.tiny_config import make_config

pytestmark = pytest.mark.faults

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node with room for one actor."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


def work_until(pool: ActorPool, done: list[Sampled], reached: Callable[[], bool]) -> None:
    """Take in what is ready until so much is reached."""
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < deadline, pool.in_work()
        for reference in ray.wait(pool.references, timeout=0.2)[0]:
            done += pool.complete(reference)


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
    policy, distribution = load_policy(config)
    weights = Weights.of(policy.trainable.parameters(), version=1, run_id="run")
    reference = ray.put(weights)
    pool = ActorPool.start(config)
    await_actors(pool)
    pool.grow()
    (first,) = pool.members
    for task in tasks(weights.stamp, 0, 4):
        pool.submit(task, reference)

    node = cluster.add_node(num_cpus=1)
    done: list[Sampled] = []
    work_until(pool, done, lambda: len(pool.members) == 2)
    second = next(member for member in pool.members if member.seat != first.seat)
    assert second.place.node == node.node_id
    assert len(pool.references) >= 1  # the third seat still waits for room

    for task in tasks(weights.stamp, 4, 6):
        pool.submit(task, reference)
    assert any(f"pid {second.place.pid}" in line for line in pool.in_work())
    cluster.remove_node(node, allow_graceful=False)
    work_until(pool, done, lambda: len(pool.members) == 1)
    assert [member.seat for member in pool.members] == [first.seat]
    work_until(pool, done, lambda: len(done) == 10)
    assert pool.restarts == 1
    assert pool.redone >= 1

    alone = Actor.of(policy, distribution)
    for one in done:
        expected, _, _ = alone.sample(one.task, weights)
        got = ray.get(one.trajectory)
        np.testing.assert_array_equal(got.latents, expected.latents)
        np.testing.assert_array_equal(got.log_prob, expected.log_prob)
    pool.shutdown()


def test_too_few_actors_for_too_long_is_an_error_that_names_what_is_missing(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    actors = {"count": 2, "minimum": 2, "cpus": 1.0, "timeout_s": 1.0}
    pool = ActorPool.start(make_config(tiny_pipeline, tmp_path, {"actors": actors}))
    pool.check_deadlines()
    time.sleep(1.1)
    with pytest.raises(StuckError, match=r"actors\.minimum is 2\. .* takes 1 CPUs.* of [12] CPUs"):
        pool.check_deadlines()
    pool.shutdown()
