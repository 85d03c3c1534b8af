"""The pool without Ray: tasks of a process that is gone are done by another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError

from actors.pool import ActorPool
from actors.process import Arrival, Place
from common.errors import StuckError
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from tests.actors.processes import HERE, Answer, Cluster

OOM = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
TASK = PromptTask("a cat", 2, NoiseKey(0, "train", 0, 0), PolicyStamp(0, "", "run"), with_reference=False)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster.install(monkeypatch)


def begun(cluster: Cluster, pipeline: Path, folder: Path, **actors: Any) -> ActorPool:
    """A pool with one ready process, which has one task."""
    config, seats = cluster.seats(pipeline, folder, count=1, **actors)
    seats.ask_for(1)
    pool = ActorPool(config, seats)
    tell(cluster, pool, cluster.started[0].arrival, Arrival(Place(1, HERE), "base"))
    weights: Any = Answer()
    pool.submit(TASK, weights)
    return pool


def tell(cluster: Cluster, pool: ActorPool, reference: Any, answer: Any) -> list[Any]:
    """Ray has an answer."""
    cluster.answers[reference] = answer
    return pool.complete(reference)


@pytest.mark.parametrize("error", [ActorDiedError(), OOM])
def test_a_task_goes_on_to_the_process_that_comes_next(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster, error: Exception
) -> None:
    pool = begun(cluster, tiny_pipeline, tmp_path)
    assert tell(cluster, pool, cluster.started[0].asked[0], error) == []
    assert (pool.redone, pool.waiting, pool.running) == (1, 1, 0)
    tell(cluster, pool, cluster.started[1].arrival, Arrival(Place(2, HERE), "base"))
    assert (pool.waiting, pool.running) == (0, 1)
    (sampled,) = tell(cluster, pool, cluster.started[1].asked[0], "a report")
    assert (sampled.task, sampled.report) == (TASK, "a report")


def test_a_task_that_makes_processes_run_out_of_memory_stops_the_run(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    pool = begun(cluster, tiny_pipeline, tmp_path, task_retries=0)
    with pytest.raises(StuckError, match=r"(?s)actors\.task_retries = 0.*low on memory"):
        tell(cluster, pool, cluster.started[0].asked[0], OOM)


def test_an_answer_that_cannot_be_fetched_stops_the_run(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    pool = begun(cluster, tiny_pipeline, tmp_path)
    with pytest.raises(StuckError, match="could not be fetched"):
        tell(cluster, pool, cluster.started[0].asked[0], GetTimeoutError())


def test_a_pool_that_was_shut_down_takes_no_tasks_and_says_so(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    """Nobody would ever do them, so who waits for one would wait for good."""
    pool = begun(cluster, tiny_pipeline, tmp_path)
    pool.shutdown()
    weights: Any = Answer()
    with pytest.raises(StuckError, match="have been ended, so 'a cat' cannot be sampled"):
        pool.submit(TASK, weights)
    assert (pool.waiting, pool.running) == (0, 0)
