"""What Ray raises for a process that is gone; and only deaths that it may have caused itself count."""

from __future__ import annotations

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
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
    Death,
    counted,
    failed_to_start,
    is_certain,
    of_last_hour,
    was_preempted,
)

NODES = ("a", "b")


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


def test_what_is_no_death() -> None:
    for error in (ObjectLostError("ff", None, ""), RayTaskError("f", "", ValueError(), "", 1, "127.0.0.1")):
        assert not isinstance(error, DEATHS)
        assert not failed_to_start(error)
        assert not was_preempted(error)


def death(at: float, *nodes: str, certain: bool = True) -> Death:
    """Of processes on these nodes."""
    return Death(at, frozenset(nodes), certain)


def test_deaths_of_gone_nodes_and_of_earlier_hours_are_forgotten() -> None:
    deaths = [
        death(0.0, "a"),
        death(10.0, "gone"),
        death(15.0, "a", "gone"),
        death(20.0),
        death(30.0, "b", certain=False),
    ]
    assert of_last_hour(deaths, 40.0, NODES) == [deaths[0], *deaths[3:]]
    assert of_last_hour(deaths, WINDOW_S + 25.0, NODES) == [deaths[4]]


def test_a_process_that_only_does_not_answer_counts_once_its_node_had_time_to_be_missed() -> None:
    deaths = [death(0.0, "a"), death(0.0, "a", certain=False)]
    assert counted(deaths, SETTLE_S - 1.0) == 1
    assert counted(deaths, SETTLE_S) == 2


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.frozensets(st.sampled_from(["a", "b", "gone"])), st.booleans())),
    st.floats(0, 1e5),
)
def test_what_is_forgotten_never_comes_back(
    given_deaths: list[tuple[float, frozenset[str], bool]], now: float
) -> None:
    deaths = [Death(*one) for one in given_deaths]
    kept = of_last_hour(deaths, now, NODES)
    assert of_last_hour(kept, now, NODES) == kept
    assert of_last_hour(kept, now + 1.0, NODES) == of_last_hour(deaths, now + 1.0, NODES) or any(
        one.at > now for one in deaths
    )
    assert counted(kept, now) <= len(kept) <= len(deaths)
    assert all("gone" not in one.nodes for one in kept)
