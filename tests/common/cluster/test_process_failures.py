"""What Ray raises for a process that is gone; and only deaths that it may have caused itself count."""

from __future__ import annotations

import pickle

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from common.cluster.process_failures import (
    DEATHS,
    SETTLE_S,
    WINDOW_S,
    DeathCounter,
    actor_table,
    failed_to_start,
    in_a_line,
    is_certain,
    own_error,
    was_preempted,
)
from common.errors import ModelError, StuckError

NODES = ("a", "b")
HERE = frozenset({"a"})
OOM = OutOfMemoryError("low on memory")


def in_constructor() -> ActorDiedError:
    """What a process raises whose constructor failed."""
    return ActorDiedError(RayTaskError("__init__", "no model", ValueError("no model"), "", 1, "127.0.0.1"))


@pytest.mark.parametrize(
    ("error", "started"),
    [
        (ActorDiedError(), True),
        (in_constructor(), False),
        (ActorUnavailableError("no answer", b"1" * ray.ActorID.size()), True),
        (OutOfMemoryError("killed by the memory monitor"), True),
        (RuntimeEnvSetupError("no such package"), False),
        (ActorUnschedulableError("its node is gone"), False),
    ],
)
def test_every_way_in_which_ray_tells_of_a_death(error: RayError, started: bool) -> None:
    assert isinstance(error, DEATHS)
    assert failed_to_start(error) == (not started)
    assert not was_preempted(error)
    assert is_certain(error) == (not isinstance(error, ActorUnavailableError))


def test_what_a_process_raised_is_found_in_what_ray_makes_of_it() -> None:
    ours = ModelError("no folder x")
    in_task = RayTaskError("f", "Traceback", ours, "", 1, "127.0.0.1")
    for error in (
        ours,
        in_task,
        in_task.as_instanceof_cause(),
        RayTaskError("g", "Traceback", in_task, "", 1, "127.0.0.1"),
        pickle.loads(pickle.dumps(ActorDiedError(in_task))),
    ):
        assert str(own_error(error)) == in_a_line(error) == "no folder x"
    assert own_error(in_constructor()) is None
    assert own_error(ActorDiedError()) is None
    assert in_a_line(in_constructor()) == "ValueError: no model"
    assert in_a_line(RuntimeEnvSetupError("no\n  package")).endswith(" no package")


def test_what_is_no_death() -> None:
    for error in (ObjectLostError("ff", None, ""), RayTaskError("f", "", ValueError(), "", 1, "127.0.0.1")):
        assert not isinstance(error, DEATHS)
        assert not failed_to_start(error)
        assert not was_preempted(error)


def at_risk(monkeypatch: pytest.MonkeyPatch, limit: int) -> tuple[DeathCounter, list[float]]:
    """A counter on a cluster of two nodes, and its clock, to be set by hand."""
    monkeypatch.setattr("common.cluster.process_failures.living_nodes", lambda: frozenset(NODES))
    clock = [0.0]
    return DeathCounter("Cats", "cats.restarts", limit, lambda: clock[0]), clock


def test_more_deaths_within_an_hour_than_allowed_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths, clock = at_risk(monkeypatch, 2)
    for _ in range(10):
        deaths.add(OOM, HERE)
        clock[0] += 0.6 * WINDOW_S
    assert deaths.total == 10
    clock[0] += 0.5 * WINDOW_S
    deaths.add(OOM, HERE)
    deaths.add(OOM, HERE)
    with pytest.raises(StuckError, match=r"Cats died 3 times.*more than cats\.restarts = 2.*low on memory"):
        deaths.add(OOM, HERE)


def test_deaths_of_nodes_are_held_against_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths, _ = at_risk(monkeypatch, 0)
    deaths.add(OOM, frozenset({"a", "gone"}))
    context = ActorDiedErrorContext(
        actor_id=b"1" * 16, node_death_info=NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
    )
    preempted = ActorDiedError(context)
    assert preempted.preempted
    deaths.add(preempted, HERE)
    assert deaths.total == 2
    with pytest.raises(StuckError):
        deaths.add(ActorDiedError(), HERE)


def test_a_process_that_only_does_not_answer_counts_once_its_node_had_time_to_be_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deaths, clock = at_risk(monkeypatch, 1)
    silent = ActorUnavailableError("no answer", b"1" * ray.ActorID.size())
    deaths.add(silent, HERE)
    clock[0] = SETTLE_S - 1.0
    deaths.add(OOM, HERE)
    deaths.add(silent, HERE)
    clock[0] = SETTLE_S
    with pytest.raises(StuckError, match="died 2 times"):
        deaths.add(silent, HERE)


def test_rays_own_table_of_actors_can_be_read() -> None:
    """By a private name; where this fails, look for another one in the Ray that is installed."""
    assert callable(actor_table)
    assert "_actor_id" in dir(ray.actor.ActorHandle) or hasattr(ray.actor.ActorHandle, "_actor_id_hex")
