"""The pool without Ray: tasks of actors that are gone are done by others, within limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from actors.pool import ActorPool, Sampled
from common.errors import ModelError, StuckError, WeightsError
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from tests.actors.processes import Cluster, settle
from tests.virtual_time import run

OOM = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
CONSTRUCTOR = ActorDiedError(RayTaskError("__init__", "no model", ValueError("no model"), "", 1, "127.0.0.1"))
WEIGHTS: Any = "a reference"


def task(number: int = 0) -> PromptTask:
    """Tasks differ by their number."""
    noise = NoiseKey(0, "train", 0, number)
    return PromptTask(f"a cat {number}", 2, noise, PolicyStamp(0, "", "run"), with_reference=False)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster.install(monkeypatch)


async def ready_pool(cluster: Cluster, folder: Path, **actors: Any) -> ActorPool:
    """A pool whose actors.count actors are all ready."""
    pool = cluster.pool(folder, **actors)
    pool.grow()
    await settle()
    for pid, process in enumerate(cluster.started, start=1):
        process.arrive(pid)
    await settle()
    return pool


def begin(pool: ActorPool, *numbers: int) -> list[asyncio.Task[Sampled]]:
    """Ask for these tasks."""
    return [asyncio.get_running_loop().create_task(pool.sample(task(number), WEIGHTS)) for number in numbers]


def test_tasks_go_in_order_to_the_actor_with_the_fewest_and_wait_where_all_are_full(
    tmp_path: Path, cluster: Cluster
) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=2, tasks_in_flight=2)
        asked = begin(pool, *range(6))
        await settle()
        held = [[one.noise.prompt_index for one, _ in process.asked] for process in cluster.started]
        assert held == [[0, 2], [1, 3]]
        assert (pool.waiting, pool.running) == (2, 4)
        assert any("2 tasks wait for an actor" in line for line in pool.in_work())
        cluster.started[1].answer()
        await settle()
        assert [one.noise.prompt_index for one, _ in cluster.started[1].asked] == [3, 4]
        assert asked[1].result().report == "report of a cat 1"
        pool.shutdown()

    run(scenario())


@pytest.mark.parametrize("error", [ActorDiedError(), OOM])
def test_tasks_of_a_dead_actor_go_before_others_to_the_one_that_replaces_it(
    tmp_path: Path, cluster: Cluster, error: Exception
) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1, tasks_in_flight=2, restarts=1)
        asked = begin(pool, 0, 1, 2)
        await settle()
        for _ in range(2):
            cluster.started[0].answer(error)
        await settle()
        assert (pool.redone, pool.restarts, pool.waiting, len(cluster.killed)) == (2, 1, 3, 1)
        cluster.started[1].arrive()
        await settle()
        assert {one.noise.prompt_index for one, _ in cluster.started[1].asked} == {0, 1}
        for _ in range(3):
            cluster.started[1].answer()
            await settle()
        assert [one.result().report for one in asked] == [f"report of a cat {number}" for number in range(3)]
        pool.shutdown()

    run(scenario())


def test_a_task_that_kills_its_actors_stops_the_run(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1, task_retries=0)
        (asked,) = begin(pool, 0)
        await settle()
        cluster.started[0].answer(OOM)
        with pytest.raises(StuckError, match=r"(?s)actors\.task_retries = 0.*low on memory"):
            await asked
        pool.shutdown()

    run(scenario())


def test_deaths_of_nodes_are_held_against_neither_task_nor_actors(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1, task_retries=0, restarts=0)
        (asked,) = begin(pool, 0)
        cluster.living = frozenset()
        for died in range(3):
            await settle()
            cluster.started[died].answer(ActorDiedError())
            await settle()
            cluster.started[died + 1].arrive()
        await settle()
        assert (pool.restarts, pool.redone) == (3, 3)
        cluster.started[-1].answer()
        assert (await asked).report == "report of a cat 0"
        pool.shutdown()

    run(scenario())


def test_a_report_that_is_lost_with_its_node_is_made_again(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1)
        (asked,) = begin(pool, 0)
        await settle()
        cluster.started[0].answer(ObjectLostError("00", None, ""))
        await settle()
        cluster.started[0].answer("again")
        assert (await asked).report == "again"
        assert (pool.redone, pool.restarts) == (1, 0)
        pool.shutdown()

    run(scenario())


def test_an_error_of_the_task_itself_is_raised_as_it_is(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1)
        (asked,) = begin(pool, 0)
        await settle()
        cluster.started[0].answer(RayTaskError("sample", "", WeightsError("altered"), "", 1, "127.0.0.1"))
        with pytest.raises(WeightsError, match="altered"):
            await asked
        pool.shutdown()

    run(scenario())


def test_a_task_has_a_limit_for_each_place_in_its_actors_queue(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1, timeout_s=5.0, tasks_in_flight=2)
        (asked,) = begin(pool, 0)
        began = asyncio.get_running_loop().time()
        with pytest.raises(StuckError, match=r"'a cat 0' .* actor 0 .*actors\.timeout_s = 5"):
            await asked
        assert asyncio.get_running_loop().time() - began == pytest.approx(10.0)
        pool.shutdown()

    run(scenario())


def test_an_actor_is_busy_with_a_task_that_nobody_wants_any_more(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1, tasks_in_flight=1)
        first, second, third = begin(pool, 0, 1, 2)
        await settle()
        first.cancel()
        second.cancel()
        await settle()
        assert (pool.running, [one.noise.prompt_index for one, _ in cluster.started[0].asked]) == (1, [0])
        cluster.started[0].answer()
        await settle()
        assert cluster.started[0].answer() == task(2)
        assert (await third).report == "report of a cat 2"
        pool.shutdown()

    run(scenario())


def test_too_few_actors_for_too_long_stop_those_who_wait(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=2, minimum=2, timeout_s=7.0)
        asked = begin(pool, 0, 1)
        await settle()
        for process in cluster.started[:2]:
            process.answer(ActorDiedError())
        for waiting in asked:
            with pytest.raises(StuckError, match=r"For 7 s only 0 actors were ready; actors\.minimum is 2"):
                await waiting
        with pytest.raises(StuckError, match="only 0 actors"):
            await pool.sample(task(2), WEIGHTS)
        pool.shutdown()

    run(scenario())


def test_a_pool_that_was_shut_down_takes_no_tasks_and_says_so(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1, tasks_in_flight=1)
        waiting = begin(pool, 0, 1)[1]
        await settle()
        pool.shutdown()
        for late in (waiting, *begin(pool, 2)):
            with pytest.raises(StuckError, match="actors have been ended"):
                await late
        assert len(cluster.killed) == 1

    run(scenario())


@pytest.mark.parametrize("error", [ActorDiedError(), OOM])
def test_an_actor_that_dies_while_it_loads_is_replaced_within_the_limit(
    tmp_path: Path, cluster: Cluster, error: Exception
) -> None:
    async def scenario() -> None:
        pool = cluster.pool(tmp_path, count=1, restarts=1)
        starting = asyncio.ensure_future(pool.start(600.0))
        await settle()
        cluster.started[0].arrival.answer(error)
        await settle()
        assert (pool.restarts, len(cluster.started)) == (1, 2)
        cluster.started[1].arrival.answer(error)
        with pytest.raises(StuckError, match=r"actors\.restarts = 1"):
            await starting
        pool.shutdown()

    run(scenario())


@pytest.mark.parametrize(
    "error",
    [RuntimeEnvSetupError("no such package"), ActorUnschedulableError("its node is gone"), CONSTRUCTOR],
)
def test_an_actor_that_cannot_start_stops_a_run_that_has_not_begun(
    tmp_path: Path, cluster: Cluster, error: Exception
) -> None:
    async def scenario() -> None:
        pool = cluster.pool(tmp_path, count=2, minimum=1, restarts=1)
        starting = asyncio.ensure_future(pool.start(600.0))
        await settle()
        cluster.started[0].arrive()
        await starting
        pool.grow()
        await settle()
        cluster.started[1].arrival.answer(error)
        await settle()
        assert pool.restarts == 1
        pool.shutdown()
        first = cluster.pool(tmp_path, count=1)
        starting = asyncio.ensure_future(first.start(600.0))
        await settle()
        cluster.started[-1].arrival.answer(error)
        with pytest.raises(StuckError, match="could not start") as caught:
            await starting
        assert "\n" not in str(caught.value)

    run(scenario())


def test_an_actors_own_error_is_shown_as_it_is(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = cluster.pool(tmp_path, count=1)
        starting = asyncio.ensure_future(pool.start(600.0))
        await settle()
        ours = RayTaskError("__init__", "Traceback", ModelError("no module q_proj"), "", 1, "127.0.0.1")
        cluster.started[0].arrival.answer(ActorDiedError(ours))
        with pytest.raises(ModelError, match=r"^no module q_proj$"):
            await starting

    run(scenario())


def test_a_start_has_a_limit_that_names_what_is_missing(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = cluster.pool(tmp_path, count=3, minimum=2)
        starting = asyncio.ensure_future(pool.start(600.0))
        await settle()
        cluster.started[0].arrive()
        await settle()
        assert "actors: 1 are ready, of actors.minimum = 2; 1 wait for room" in pool.in_work()[0]
        with pytest.raises(StuckError, match=r"actors\.minimum is 2\. 1 more wait .* free in the"):
            await starting
        pool.shutdown()

    run(scenario())


def test_an_actor_that_has_loaded_another_model_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    async def scenario() -> None:
        pool = await ready_pool(cluster, tmp_path, count=1, tasks_in_flight=1)
        pool.require_base("base")
        asked = begin(pool, 0, 1)
        await settle()
        cluster.started[0].answer(ActorDiedError())
        await settle()
        cluster.started[1].arrive(pid=2, base="another")
        for one in asked:
            with pytest.raises(WeightsError, match=r"Actor 0 \(pid 2, node node-a\) has loaded another"):
                await one
        pool.shutdown()

    run(scenario())
