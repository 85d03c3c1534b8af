"""How Ray says that a process of ours is gone, and which deaths count: those that the process may itself be
the cause of, within an hour."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import actors as actor_table
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayActorError,
    RuntimeEnvSetupError,
)

DEATHS = (RayActorError, OutOfMemoryError, RuntimeEnvSetupError, ActorUnschedulableError)
"""What a call of a process raises where that process is gone or never came.

Ray has a type for each cause, without a common base. OutOfMemoryError: its memory monitor killed the process.
"""
Gone = RayActorError | OutOfMemoryError | RuntimeEnvSetupError | ActorUnschedulableError

WINDOW_S = 3600.0
SETTLE_S = 60.0
"""After so long Ray knows whether it was the whole node that died."""


def failed_to_start(error: BaseException) -> bool:
    """Whether the process's own constructor failed, or it could not be given its environment or place."""
    if isinstance(error, RayActorError):
        return error.actor_init_failed
    return isinstance(error, RuntimeEnvSetupError | ActorUnschedulableError)


def was_preempted(error: BaseException) -> bool:
    """Whether Ray says that the process's node was taken away."""
    return isinstance(error, RayActorError) and error.preempted


def is_certain(error: BaseException) -> bool:
    """Whether the process is known to be dead. Otherwise it does not answer, and its node may be gone."""
    return not isinstance(error, ActorUnavailableError)


def living_nodes() -> frozenset[str]:
    """Ray's ids of the nodes that live, as far as it is known."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def nodes_of(processes: Iterable[Any]) -> frozenset[str]:
    """Ray's ids of the nodes that these processes run or ran on; without those that have no node yet.

    processes: Ray's handles.
    """
    tables = [actor_table(process._actor_id.hex()) for process in processes]
    nodes = [table["Address"]["NodeID"] for table in tables if table]
    return frozenset(node for node in nodes if node)


@dataclass(frozen=True)
class Death:
    """Of one process, or of several that die together. at: seconds, monotonic; nodes: where they ran, none
    where that is not known.

    certain: see is_certain.
    """

    at: float
    nodes: frozenset[str]
    certain: bool


def of_last_hour(deaths: Sequence[Death], now: float, nodes: Collection[str]) -> list[Death]:
    """The deaths of the last hour, but for those of whole nodes. nodes: ids of the living ones.

    A node's death shows in its processes first, so this is asked anew at each death.
    """
    alive = frozenset(nodes)
    return [death for death in deaths if now - death.at <= WINDOW_S and death.nodes <= alive]


def counted(deaths: Sequence[Death], now: float) -> int:
    """How many of them were the processes' own."""
    return sum(death.certain or now - death.at >= SETTLE_S for death in deaths)
