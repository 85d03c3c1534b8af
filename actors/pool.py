"""The Ray edge of the actors: a process each, and a pool of them that samples tasks, redoes those of dead
actors, and holds references only.

It begins with actors.minimum actors and asks Ray for more, up to actors.count. They join when Ray finds room
for them, and leave when they or their nodes die: tasks and results do not depend on how many there are.

consumes: PromptTask with the reference of its weights. produces: Sampled (references and a small report).
waits for: an actor with room, then its answer. unblocked by: the actor, its death, or actors.timeout_s.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayTaskError

from actors.actor import Actor, Sample, SampleReport
from actors.slots import ActorSlots, Arrival, Place, ReadyActor
from common.cluster.fate import end_with_parent
from common.cluster.process_failures import DEATHS, in_a_line
from common.cluster.process_options import process_options
from common.cluster.references import value_of
from common.cluster.work_meter import WorkMeter
from common.config.schema import Config
from common.errors import PrdpError, StuckError
from common.model.loading import digest_base, digest_encoders_and_vae, load_policy
from common.model.weights import Weights
from common.trajectory import PromptTask

TASK_TRIES = 20
"""How often a task may be begun again because whole nodes died."""


class ActorProcess:
    """One actor's process. Thin: the work is Actor's."""

    def __init__(self, config: Config) -> None:
        end_with_parent()
        torch.set_num_threads(config.actors.threads)
        policy, steps = load_policy(config)
        self._base, self._encoders_and_vae = digest_base(policy), digest_encoders_and_vae(policy)
        self._actor = Actor.of(policy, steps)
        self._meter = WorkMeter.start(config.run.name, "actors")

    def ready(self) -> Arrival:
        """Where this process runs and what it has loaded, once the constructor is through."""
        place = Place(os.getpid(), ray.get_runtime_context().get_node_id())
        return Arrival(place, self._base, self._encoders_and_vae)

    def sample(self, task: PromptTask, weights: Weights) -> Sample:
        """See Actor.sample. Returns three objects, so that each can be moved alone."""
        sampled = self._actor.sample(task, weights)
        report = sampled[2]
        self._meter.worked(report.busy_s, report.num_images, report.nbytes)
        return sampled


def start_process(config: Config) -> Any:
    """Ask Ray for one more process. Where there is no room, the request waits, and is what makes an
    autoscaler add a node."""
    return ray.remote(ActorProcess).options(**process_options(config.actors), max_restarts=0).remote(config)


@dataclass(frozen=True)
class Sampled:
    """A finished task: references to its TrajectoryGroup and images, and the report itself."""

    trajectory: ray.ObjectRef
    images: ray.ObjectRef
    report: SampleReport


@dataclass(frozen=True)
class _RunningTask:
    task: PromptTask
    actor: ReadyActor
    began: float


class ActorPool:
    """A pool of actor processes in one event loop. A ready actor holds at most tasks_in_flight tasks; others
    wait here, first come, first served.

    start_one: asks Ray for one more process.
    """

    def __init__(self, config: Config, start_one: Callable[[Config], Any] = start_process) -> None:
        self._section = config.actors
        self._slots = ActorSlots(config, start_one, self._join, self._leave, self._fail)
        self._held: dict[ReadyActor, int] = {}
        self._waiting: deque[asyncio.Future[ReadyActor]] = deque()
        self._running: dict[ray.ObjectRef, _RunningTask] = {}
        self._redone = 0

    async def start(self, limit_s: float) -> None:
        """Ask for actors.minimum processes and wait until they are ready.

        Raises StuckError after limit_s, or where one cannot start; WeightsError where the base is another.
        """
        self._slots.request(self._section.minimum)
        await self._slots.wait_until_enough(limit_s)

    def grow(self) -> None:
        """Ask for the rest, up to actors.count: once all else that needs room in the cluster has it."""
        self._slots.request(self._section.count)

    def require_base(self, base: str) -> None:
        """From here on, refuse processes that load another pretrained model. base: its digest."""
        self._slots.require_base(base)

    @property
    def members(self) -> Sequence[ReadyActor]:
        """The actors that are ready, by slot."""
        return self._slots.ready

    @property
    def waiting(self) -> int:
        """Tasks that no actor has room for."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Tasks that actors hold."""
        return len(self._running)

    @property
    def restarts(self) -> int:
        """Actors replaced so far."""
        return self._slots.replaced

    @property
    def redone(self) -> int:
        """Tasks begun again so far."""
        return self._redone

    @property
    def ready_s(self) -> float:
        """Seconds that actors have been ready so far, summed over actors."""
        return self._slots.ready_s

    def in_work(self) -> list[str]:
        """Each task that an actor holds, in words: who, where, what, how long, the oldest first; how many
        tasks wait; and how many actors are ready, where they are too few."""
        now, place = time.monotonic(), "actor {0.slot} (pid {0.place.pid}, node {0.place.node:.8})"
        lines = [
            f"{place.format(one.actor)}: {one.task.prompt!r}, for {now - one.began:.0f} s"
            for one in self._running.values()
        ]
        if self._waiting:
            lines.append(f"{len(self._waiting)} tasks wait for an actor")
        if len(self._held) < self._section.minimum:
            lines.append(
                f"actors: {len(self._held)} are ready, of actors.minimum = {self._section.minimum}; "
                f"{self._slots.pending} wait for room in the cluster, or load the model"
            )
        return lines

    async def sample(self, task: PromptTask, weights: ray.ObjectRef) -> Sampled:
        """Have an actor do a task; begun again elsewhere, to the same bits, where the actor or the answer is
        lost.

        Raises the task's own error where sampling failed; StuckError where it takes longer than
        actors.timeout_s, where it loses its actor more often than actors.task_retries allows, where actors
        die too often or are too few for too long, and after `shutdown`.
        """
        deaths = 0
        for attempt in range(TASK_TRIES):
            self._redone += bool(attempt)
            actor = await self._actor_with_room(task, first=bool(attempt))
            try:
                return await self._sample_with(actor, task, weights)
            except DEATHS as error:
                deaths += not self._slots.may_be_of_node(actor, error)
                if deaths > self._section.task_retries:
                    raise StuckError(
                        f"The task of prompt {task.prompt!r} lost its actor {deaths} times, more than "
                        f"actors.task_retries = {self._section.task_retries} allows; it may be what kills "
                        f"them. The last: {in_a_line(error)}"
                    ) from error
            except _ReportLost:
                # It went with its node; the actor's next task tells of the actor's death.
                continue
        raise StuckError(f"The task of prompt {task.prompt!r} was lost {TASK_TRIES} times. Are nodes stable?")

    def shutdown(self) -> None:
        """End the processes. Tasks that wait or run are given up, and no more are taken."""
        self._held.clear()
        self._slots.close(StuckError("The actors have been ended."))

    def _join(self, actor: ReadyActor) -> None:
        self._held[actor] = 0
        self._feed()

    def _leave(self, actor: ReadyActor) -> None:
        del self._held[actor]

    def _fail(self, error: BaseException) -> None:
        """Tasks that wait raise it; those in work come to their end."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(error)

    async def _actor_with_room(self, task: PromptTask, first: bool) -> ReadyActor:
        """A ready actor, in which one more task counts from here on. first: go before all others."""
        if self._slots.failure:
            raise self._slots.failure
        waiting: asyncio.Future[ReadyActor] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(waiting)
        self._feed()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self._give_back(waiting.result())
            raise

    def _feed(self) -> None:
        """Give actors with the fewest tasks to those who wait."""
        while self._waiting and self._held:
            actor = min(self._held, key=self._held.__getitem__)
            if self._held[actor] >= self._section.tasks_in_flight:
                return
            waiting = self._waiting.popleft()
            if not waiting.done():
                self._held[actor] += 1
                waiting.set_result(actor)

    def _give_back(self, actor: ReadyActor) -> None:
        if actor in self._held:
            self._held[actor] -= 1
            self._feed()

    async def _sample_with(self, actor: ReadyActor, task: PromptTask, weights: ray.ObjectRef) -> Sampled:
        section, call = self._section, actor.process.sample.options(num_returns=3)
        trajectory, images, report = call.remote(task, weights)
        self._running[report] = _RunningTask(task, actor, time.monotonic())
        answer = asyncio.ensure_future(value_of(report))
        answer.add_done_callback(partial(self._finished, report))
        # Tasks wait their turn in the actor's own queue: each may take the limit once per place in it.
        limit_s = section.timeout_s * section.tasks_in_flight
        try:
            async with asyncio.timeout(limit_s):
                # Where nobody wants the answer any more, the actor is still at work on it.
                return Sampled(trajectory, images, await asyncio.shield(answer))
        except TimeoutError:
            raise StuckError(
                f"Prompt {task.prompt!r} has been with actor {actor.slot} (node {actor.place.node[:8]}) for "
                f"{limit_s:g} s, longer than actors.timeout_s = {section.timeout_s:g} for each of "
                f"{section.tasks_in_flight} tasks in flight. Raise the limit, or look at the actors' logs."
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                raise WeightsLost from error
            raise (error.cause if isinstance(error.cause, PrdpError) else error) from error
        except ObjectLostError as error:
            raise _ReportLost from error

    def _finished(self, report: ray.ObjectRef, answer: asyncio.Future[Any]) -> None:
        """An actor is through with a task, or has died over it."""
        actor = self._running.pop(report).actor
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, DEATHS):
            self._slots.mark_dead(actor, error)
        self._give_back(actor)


class WeightsLost(Exception):  # noqa: N818 - an event that the run mends
    """The weights that a task names are gone, with every node that held them."""


class _ReportLost(Exception):  # noqa: N818 - an event that the pool mends
    """A report had been made, and went with its node."""
