"""The seats of a pool: actors that are ready, and those that are asked for.

A seat has a process from the beginning: one that Ray has no room for yet, one that loads its model, or one
that is ready. Only ready ones take tasks. When a process dies, its seat asks for another one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from actors.process import Arrival, Place, start_process
from common.cluster.process_failures import (
    DEATHS,
    Death,
    Gone,
    counted,
    failed_to_start,
    is_certain,
    living_nodes,
    nodes_of,
    of_last_hour,
    was_preempted,
)
from common.config.schema import Config
from common.errors import StuckError
from common.model.loading import check_base

FETCH_LIMIT_S = 30.0
"""How long the fetch of a small answer may take that Ray says is there."""


@dataclass(frozen=True)
class ActorSlot:
    """One place in the pool. number: from 0; process: Ray's handle; arrival: reference of its Arrival."""

    number: int
    process: Any
    arrival: ray.ObjectRef


class ActorSlots:
    """All seats of a pool. Owned by one thread. start: asks for one more process, see start_process."""

    def __init__(self, config: Config, start: Callable[[Config], Any] = start_process) -> None:
        self._config = config
        self._start = start
        self._section = config.actors
        self._ready: dict[ActorSlot, Place] = {}
        self._coming: dict[ray.ObjectRef, ActorSlot] = {}
        self._new: list[ray.ObjectRef] = []
        self._bases: tuple[str, ...] = ()
        self._deaths: list[Death] = []
        self._replaced = 0
        self._has_begun = False
        self._short_since = time.monotonic()
        self._ready_s = 0.0
        self._counted_at = time.monotonic()

    @property
    def ready(self) -> Mapping[ActorSlot, Place]:
        """The seats that take tasks, and where their processes are."""
        return self._ready

    @property
    def arrivals(self) -> list[ray.ObjectRef]:
        """One reference for each process that is not ready yet: give it to `arrive` when Ray has it."""
        return list(self._coming)

    def take_new(self) -> list[ray.ObjectRef]:
        """Those of `arrivals` that have come since the last call; some may have been given to `arrive`."""
        new, self._new = self._new, []
        return new

    @property
    def replaced(self) -> int:
        """Processes that died and were asked for again so far."""
        return self._replaced

    @property
    def ready_s(self) -> float:
        """Seconds that actors have been ready, summed over actors."""
        self._count_time()
        return self._ready_s

    def expect(self, base: str) -> None:
        """From here on, refuse processes that load another pretrained model. base: its digest."""
        self._bases = (base,)

    def ask_for(self, total: int) -> None:
        """Ask for processes until there are so many seats."""
        for number in range(len(self._ready) + len(self._coming), total):
            self._open(number)

    def arrive(self, reference: ray.ObjectRef) -> list[ActorSlot]:
        """A process says that it is ready, or has died before: the seat that is ready through it, if any.

        Nothing happens where the reference is not one of `arrivals`. Raises StuckError where an actor cannot
        start, and where more have died than allowed; WeightsError where one has loaded another pretrained
        model than is expected.
        """
        if reference not in self._coming:
            return []
        seat = self._coming.pop(reference)
        try:
            arrival: Arrival = ray.get(reference, timeout=FETCH_LIMIT_S)
        except GetTimeoutError as error:
            raise StuckError(
                f"Actor {seat.number} is ready, but its answer could not be fetched in {FETCH_LIMIT_S:.0f} s."
            ) from error
        except DEATHS as error:
            if failed_to_start(error) and not self._has_begun:
                raise StuckError(f"An actor could not start: {error}") from error
            self._replace(seat, nodes_of([seat.process]), error)
            return []
        place = arrival.place
        for base in self._bases:
            check_base(arrival.base, base, f"Actor {seat.number} (pid {place.pid}, node {place.node[:8]})")
        self._count_time()
        self._ready[seat] = place
        self._has_begun = self._has_begun or len(self._ready) >= self._section.minimum
        return [seat]

    def mark_dead(self, seat: ActorSlot, error: Gone) -> None:
        """A ready seat's process has died: ask for another one, once, however many of its tasks say so.

        Raises StuckError where more have died than allowed.
        """
        if seat not in self._ready:
            return
        self._count_time()
        place = self._ready.pop(seat)
        if len(self._ready) == self._section.minimum - 1:
            self._short_since = time.monotonic()
        # An actor that Ray only calls unavailable may live on; two in one seat would compete for its room.
        ray.kill(seat.process)
        self._replace(seat, frozenset({place.node}), error)

    def check_enough(self, limit_s: float) -> None:
        """Raise StuckError where fewer than actors.minimum have been ready for longer than limit_s."""
        section, now = self._section, time.monotonic()
        if len(self._ready) >= section.minimum or now - self._short_since <= limit_s:
            return
        raise StuckError(
            f"For {limit_s:.0f} s only {len(self._ready)} actors were ready; actors.minimum is "
            f"{section.minimum}. {len(self._coming)} more wait for Ray to find room, or load the model. Each "
            f"takes {section.cpus:g} CPUs, {section.gpus:g} GPUs and a node with the labels "
            f"{section.labels}; free in the cluster are {_resources(ray.available_resources())}, of "
            f"{_resources(ray.cluster_resources())}. Add nodes, free some, or lower what an actor takes."
        )

    def is_of_node(self, node: str, error: Gone) -> bool:
        """Whether an actor's death on that node is, or may be, that of the node."""
        return was_preempted(error) or not is_certain(error) or node not in living_nodes()

    def close(self) -> None:
        """End every process, and withdraw what is asked for."""
        for seat in (*self._ready, *self._coming.values()):
            ray.kill(seat.process)
        self._ready.clear()
        self._coming.clear()
        # Nobody is missed from now on.
        self._short_since = math.inf

    def _open(self, number: int) -> None:
        process = self._start(self._config)
        seat = ActorSlot(number, process, process.ready.remote())
        self._coming[seat.arrival] = seat
        self._new.append(seat.arrival)

    def _replace(self, seat: ActorSlot, nodes: frozenset[str], error: Gone) -> None:
        now = time.monotonic()
        deaths = [] if was_preempted(error) else [Death(now, nodes, is_certain(error))]
        self._deaths = of_last_hour([*self._deaths, *deaths], now, living_nodes())
        own = counted(self._deaths, now)
        if own > self._section.restarts:
            raise StuckError(
                f"Actors died {own} times within an hour, more than actors.restarts = "
                f"{self._section.restarts} allows. The last: {error}"
            ) from error
        self._replaced += 1
        self._open(seat.number)

    def _count_time(self) -> None:
        now = time.monotonic()
        self._ready_s += len(self._ready) * (now - self._counted_at)
        self._counted_at = now


def _resources(found: Mapping[str, float]) -> str:
    return ", ".join(f"{found.get(unit, 0.0):g} {unit}s" for unit in ("CPU", "GPU"))
