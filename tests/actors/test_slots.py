"""A process that is gone is asked for again, whatever Ray calls its death, and within limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from actors.process import Arrival, Place
from actors.slots import ActorSlot, ActorSlots
from common.errors import StuckError, WeightsError
from tests.actors.processes import HERE, Cluster

OOM = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
MISSING = RuntimeEnvSetupError("no such package")
UNPLACED = ActorUnschedulableError("its node is gone")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster.install(monkeypatch)


def arrive(cluster: Cluster, seats: ActorSlots, answer: Any) -> list[ActorSlot]:
    """The process started last answers."""
    reference: Any = cluster.started[-1].arrival
    cluster.answers[reference] = answer
    return seats.arrive(reference)


@pytest.mark.parametrize("error", [ActorDiedError(), OOM])
def test_a_process_that_dies_while_it_loads_is_asked_for_again(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster, error: Exception
) -> None:
    _, seats = cluster.seats(tiny_pipeline, tmp_path, count=1, restarts=1)
    seats.ask_for(1)
    assert arrive(cluster, seats, error) == []
    assert (seats.replaced, len(cluster.started)) == (1, 2)
    with pytest.raises(StuckError, match=r"actors\.restarts = 1"):
        arrive(cluster, seats, error)


@pytest.mark.parametrize("error", [MISSING, UNPLACED])
def test_a_process_that_cannot_start_stops_a_run_that_has_not_begun(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster, error: Exception
) -> None:
    _, seats = cluster.seats(tiny_pipeline, tmp_path, count=2, restarts=1)
    seats.ask_for(1)
    with pytest.raises(StuckError, match="could not start"):
        arrive(cluster, seats, error)
    seats.ask_for(1)
    assert arrive(cluster, seats, Arrival(Place(1, HERE), "base"))
    seats.ask_for(2)
    assert arrive(cluster, seats, error) == []
    assert seats.replaced == 1


def test_an_error_of_the_constructor_stops_a_run_that_has_not_begun(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    _, seats = cluster.seats(tiny_pipeline, tmp_path, count=1)
    seats.ask_for(1)
    cause = RayTaskError("__init__", "no model", ValueError("no model"), "", 1, "127.0.0.1")
    with pytest.raises(StuckError, match="no model"):
        arrive(cluster, seats, ActorDiedError(cause))


def test_nodes_that_die_under_loading_processes_are_held_against_nobody(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    _, seats = cluster.seats(tiny_pipeline, tmp_path, count=1, restarts=0)
    seats.ask_for(1)
    cluster.lost_on = frozenset({"gone"})
    for replaced in range(1, 4):
        assert arrive(cluster, seats, ActorDiedError()) == []
        assert seats.replaced == replaced
    cluster.lost_on = frozenset({HERE})
    with pytest.raises(StuckError, match=r"actors\.restarts = 0"):
        arrive(cluster, seats, ActorDiedError())


def test_a_ready_process_that_ran_out_of_memory_is_replaced_once(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    _, seats = cluster.seats(tiny_pipeline, tmp_path, count=1, restarts=1)
    seats.ask_for(1)
    (seat,) = arrive(cluster, seats, Arrival(Place(1, HERE), "base"))
    for _ in range(2):
        seats.mark_dead(seat, OOM)
    assert (seats.replaced, len(seats.ready), len(cluster.killed)) == (1, 0, 1)
    assert not seats.is_of_node(HERE, OOM)


def test_a_process_that_has_loaded_another_model_is_refused(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    _, seats = cluster.seats(tiny_pipeline, tmp_path, count=2)
    seats.expect("base")
    seats.ask_for(1)
    assert arrive(cluster, seats, Arrival(Place(1, HERE), "base"))
    seats.ask_for(2)
    with pytest.raises(WeightsError, match=r"Actor 1 \(pid 2, node node-a\) has loaded another pretrained"):
        arrive(cluster, seats, Arrival(Place(2, HERE), "another"))
