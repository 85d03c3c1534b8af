"""Deaths of processes: how Ray tells of them, and which count, namely those that the process may itself be
the cause of, within an hour.

Ray's table of actors has no public form that works without the dashboard, so it is read here by a private
name (`actor_table`), with a test that fails on a Ray without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import actors as actor_table
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from common.cluster.references import first_line
from common.errors import PrdpError, StuckError

DEATHS = (RayActorError, OutOfMemoryError, RuntimeEnvSetupError, ActorUnschedulableError)
"""What a call of a process raises where that process is gone or never came.

Ray has a type for each cause, without a common base. OutOfMemoryError: its memory monitor killed the process.
"""
Gone = RayActorError | OutOfMemoryError | RuntimeEnvSetupError | ActorUnschedulableError

LONGEST_LINE = 400
"""Characters of what Ray says that are shown."""
WINDOW_S = 3600.0
SETTLE_S = 60.0
"""After so long Ray knows whether it was the whole node that died."""


def failed_to_start(error: BaseException) -> bool:
    """Whether the process's own constructor failed, or it could not be given its environment or place."""
    if isinstance(error, RayActorError):
        return error.actor_init_failed
    return isinstance(error, RuntimeEnvSetupError | ActorUnschedulableError)


def cause_of(error: BaseException) -> BaseException:
    """What a process itself raised, in a call or in its constructor; the error as it is where Ray raised it.

    Ray's own text of such an error is a traceback of the worker with the cause in its last line.
    """
    while True:
        if isinstance(error, RayTaskError):
            error = error.cause
        elif isinstance(error, ActorDiedError) and error.args and isinstance(error.args[0], RayTaskError):
            # Of a constructor's error Ray keeps nothing but what it was made from.
            error = error.args[0]
        else:
            return error


def own_error(error: BaseException) -> PrdpError | None:
    """The error of ours that a process raised; None where it raised another, or none."""
    cause = cause_of(error)
    return cause if isinstance(cause, PrdpError) else None


def in_a_line(error: BaseException) -> str:
    """What a process raised: an error of ours as it is, others by type and first line; or what Ray says."""
    cause = cause_of(error)
    if isinstance(cause, PrdpError):
        return str(cause)
    text = " ".join(str(cause).split())[:LONGEST_LINE] if isinstance(cause, RayError) else first_line(cause)
    return f"{type(cause).__name__}: {text}"


def was_preempted(error: BaseException) -> bool:
    """Whether Ray says that the process's node was taken away."""
    return isinstance(error, RayActorError) and error.preempted


def is_certain(error: BaseException) -> bool:
    """Whether the process is known to be dead. Otherwise it does not answer, and its node may be gone."""
    return not isinstance(error, ActorUnavailableError)


def living_nodes() -> frozenset[str]:
    """Ray's ids of the nodes that live, as far as it is known."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def all_actors() -> list[dict[str, Any]]:
    """What Ray knows of every actor of the cluster."""
    return list(actor_table().values())


def nodes_of(processes: Iterable[Any]) -> frozenset[str]:
    """Ray's ids of the nodes that these processes run or ran on; without those that have no node yet.

    processes: Ray's handles.
    """
    tables = [actor_table(process._actor_id.hex()) for process in processes]
    nodes = [table["Address"]["NodeID"] for table in tables if table]
    return frozenset(node for node in nodes if node)


def place_of(process: Any) -> str:
    """`pid 123, node 1a2b3c4d`, or that Ray has found it no place yet. process: Ray's handle."""
    table = actor_table(process._actor_id.hex())
    if not table or not table["Address"]["NodeID"]:
        return "not placed yet"
    return f"pid {table['Pid']}, node {table['Address']['NodeID'][:8]}"


@dataclass(frozen=True)
class _Death:
    """Of one process, or of several that die together. nodes: where they ran, none where not known."""

    at: float
    nodes: frozenset[str]
    certain: bool


class DeathCounter:
    """Counts the deaths of one kind of process, and stops the run where they are too many.

    who: "Actors". setting: the key of `limit`, deaths within an hour that may be the processes' own. A death
    together with its node is held against nobody; a node's death shows in its processes first, so nodes are
    looked at anew at each death. clock: seconds, monotonic.
    """

    def __init__(
        self, who: str, setting: str, limit: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._who = who
        self._setting = setting
        self._limit = limit
        self._clock = clock
        self._deaths: list[_Death] = []
        self._total = 0

    @property
    def total(self) -> int:
        """All so far."""
        return self._total

    def add(self, error: BaseException, nodes: frozenset[str]) -> None:
        """Processes that ran on these nodes have died; error: what told of it.

        Raises StuckError where they have died more often within an hour than allowed.
        """
        self._total += 1
        now = self._clock()
        if not was_preempted(error):
            self._deaths.append(_Death(now, nodes, is_certain(error)))
        alive = living_nodes()
        self._deaths = [
            death for death in self._deaths if now - death.at <= WINDOW_S and death.nodes <= alive
        ]
        recent = sum(death.certain or now - death.at >= SETTLE_S for death in self._deaths)
        if recent > self._limit:
            raise StuckError(
                f"{self._who} died {recent} times within an hour, more than {self._setting} = {self._limit} "
                f"allows. Look at the logs: out of memory is the usual reason. The last: {in_a_line(error)}"
            ) from error
