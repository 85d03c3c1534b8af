"""The Ray actors of a pool: each slot always has a process, pending, loading or ready; dead ones are
replaced.

consumes: the configuration, and deaths that tasks tell of. produces: ready actors. waits for: Ray to find
room for a process and the process to load its model, one coroutine a slot. unblocked by: the process or its
death.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from common.cluster.process_failures import (
    DEATHS,
    DeathCounter,
    Gone,
    failed_to_start,
    in_a_line,
    is_certain,
    living_nodes,
    nodes_of,
    own_error,
    was_preempted,
)
from common.cluster.references import value_of
from common.config.schema import Config
from common.errors import StuckError
from common.model.loading import check_base


@dataclass(frozen=True)
class Place:
    """Where a process runs. node: Ray's id of it, hex."""

    pid: int
    node: str


@dataclass(frozen=True)
class Arrival:
    """What a process says once it is ready.

    base: digest of its pretrained network. encoders_and_vae: of the other parts. See common.model.loading.
    """

    place: Place
    base: str
    encoders_and_vae: str


@dataclass(frozen=True, eq=False)
class ReadyActor:
    """An actor that takes tasks. slot: its number in the pool; process: Ray's handle. died: for
    `mark_dead`."""

    slot: int
    process: Any
    place: Place
    died: asyncio.Future[Gone] = field(repr=False)


class ActorSlots:
    """All slots of a pool. Lives in one event loop.

    start: asks Ray for one more process. join, leave: told of an actor that takes tasks from here on, and of
    one that takes none any more. fail: told why the pool cannot go on.
    """

    def __init__(
        self,
        config: Config,
        start: Callable[[Config], Any],
        join: Callable[[ReadyActor], None],
        leave: Callable[[ReadyActor], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._section = config.actors
        self._start = start
        self._join = join
        self._leave = leave
        self._fail_pool = fail
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: dict[int, Any] = {}
        self._ready: dict[ReadyActor, None] = {}
        self._deaths = DeathCounter("Actors", "actors.restarts", config.actors.restarts)
        self._base: str | None = None
        # Of the first actor that was ready: the learner has neither text encoders nor VAE.
        self._encoders_and_vae: str | None = None
        self.failure: BaseException | None = None
        self._enough = asyncio.Event()
        self._has_begun = False
        self._alarm: asyncio.TimerHandle | None = None
        self._ready_s = 0.0
        self._counted_at = time.monotonic()

    @property
    def ready(self) -> list[ReadyActor]:
        """Those that take tasks, by slot."""
        return sorted(self._ready, key=lambda actor: actor.slot)

    @property
    def pending(self) -> int:
        """Slots whose process waits for room in the cluster, or loads its model."""
        return len(self._processes) - len(self._ready)

    @property
    def replaced(self) -> int:
        """Processes that died and were asked for again so far."""
        return self._deaths.total

    @property
    def ready_s(self) -> float:
        """Seconds that actors have been ready, summed over actors."""
        self._count_time()
        return self._ready_s

    def require_base(self, base: str) -> None:
        """From here on, refuse processes that load another pretrained model. base: its digest."""
        self._base = base

    def request(self, total: int) -> None:
        """Ask for processes until there are so many slots."""
        for slot in range(len(self._keepers), total):
            keeper = asyncio.get_running_loop().create_task(self._keep(slot))
            keeper.add_done_callback(self._tell_failure)
            self._keepers.append(keeper)

    async def wait_until_enough(self, limit_s: float) -> None:
        """Until actors.minimum are ready. Raises StuckError after limit_s, or the pool's failure."""
        try:
            async with asyncio.timeout(limit_s):
                await self._enough.wait()
        except TimeoutError:
            raise StuckError(self._too_few(limit_s)) from None
        if self.failure:
            raise self.failure

    def mark_dead(self, actor: ReadyActor, error: Gone) -> None:
        """A ready actor's process has died: it is replaced once, however many of its tasks say so."""
        if actor in self._ready:
            self._count_time()
            del self._ready[actor]
            self._leave(actor)
            self._watch_minimum()
            actor.died.set_result(error)

    def may_be_of_node(self, actor: ReadyActor, error: Gone) -> bool:
        """Whether an actor's death is, or may be, that of its whole node."""
        return was_preempted(error) or not is_certain(error) or actor.place.node not in living_nodes()

    def close(self, error: BaseException) -> None:
        """End every process, and withdraw what is asked for. error: for whoever wants an actor from here
        on."""
        for keeper in self._keepers:
            keeper.cancel()
        for process in self._processes.values():
            ray.kill(process)
        if self._alarm:
            self._alarm.cancel()
        self._processes.clear()
        self._ready.clear()
        self._fail(error)

    async def _keep(self, slot: int) -> None:
        """A slot's processes, one after the other. Raises StuckError, WeightsError, what the first raised."""
        while True:
            process = self._processes[slot] = self._start(self._config)
            nodes, error = await self._outlive(slot, process)
            # One that Ray only calls unavailable may live on; two in one slot would compete for its room.
            ray.kill(process)
            self._deaths.add(error, nodes)

    async def _outlive(self, slot: int, process: Any) -> tuple[frozenset[str], Gone]:
        """Wait for the process's death: the nodes it ran on, as far as is known, and what told of it."""
        try:
            arrival: Arrival = await value_of(process.ready.remote())
        except DEATHS as error:
            if failed_to_start(error) and not self._has_begun:
                raise own_error(error) or StuckError(
                    f"An actor could not start: {in_a_line(error)} Ray's logs (worker-*.err) have the rest."
                ) from error
            return nodes_of([process]), error
        place = arrival.place
        who = f"Actor {slot} (pid {place.pid}, node {place.node[:8]})"
        if self._base is not None:
            check_base(arrival.base, self._base, who)
        self._encoders_and_vae = self._encoders_and_vae or arrival.encoders_and_vae
        check_base(arrival.encoders_and_vae, self._encoders_and_vae, who)
        actor = ReadyActor(slot, process, place, asyncio.get_running_loop().create_future())
        self._count_time()
        self._ready[actor] = None
        self._watch_minimum()
        self._join(actor)
        return frozenset({place.node}), await actor.died

    def _tell_failure(self, keeper: asyncio.Task[None]) -> None:
        """A slot's coroutine has ended: by `close`, or by what the run cannot go on after."""
        error = None if keeper.cancelled() else keeper.exception()
        if error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        # Whoever waits for actors hears of it.
        self._enough.set()
        self._fail_pool(error)

    def _watch_minimum(self) -> None:
        """Begin or end the wait for enough actors, once the run has begun."""
        if len(self._ready) >= self._section.minimum:
            self._has_begun = True
            self._enough.set()
            if self._alarm:
                self._alarm.cancel()
                self._alarm = None
        elif self._has_begun and not self._alarm:
            self._enough.clear()
            limit = self._section.timeout_s
            self._alarm = asyncio.get_running_loop().call_later(
                limit, lambda: self._fail(StuckError(self._too_few(limit)))
            )

    def _too_few(self, limit_s: float) -> str:
        section = self._section
        return (
            f"For {limit_s:.0f} s only {len(self._ready)} actors were ready; actors.minimum is "
            f"{section.minimum}. {self.pending} more wait for Ray to find room, or load the model. Each "
            f"takes {section.cpus:g} CPUs, {section.gpus:g} GPUs and a node with the labels "
            f"{section.labels}; free in the cluster are {_in_words(ray.available_resources())}, of "
            f"{_in_words(ray.cluster_resources())}. Add nodes, free some, or lower what an actor takes."
        )

    def _count_time(self) -> None:
        now = time.monotonic()
        self._ready_s += len(self._ready) * (now - self._counted_at)
        self._counted_at = now


def _in_words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(unit, 0.0):g} {unit}s" for unit in ("CPU", "GPU"))
