"""The Ray edge of the actors: a pool that does tasks, redoes those of dead actors, and holds only references.

It begins with actors.minimum actors and asks Ray for more, up to actors.count. They join when Ray finds room
for them, and leave when they or their nodes die: tasks and results do not depend on how many there are.

consumes: PromptTask with the reference of its weights. produces: Sampled (references and a small report).
waits for: nothing itself; the driver waits on `references` and hands back what is ready. unblocked by: the
driver.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

from actors.actor import SampleReport
from actors.balance import Balance
from actors.process import Place
from actors.slots import FETCH_LIMIT_S, ActorSlot, ActorSlots
from common.cluster.process_failures import DEATHS, Gone
from common.config.schema import Config
from common.config.services import ActorsSection
from common.errors import PrdpError, StuckError
from common.trajectory import PromptTask


@dataclass(frozen=True)
class Sampled:
    """A finished task: references to its TrajectoryGroup and images, and the report itself."""

    task: PromptTask
    trajectory: ray.ObjectRef
    images: ray.ObjectRef
    report: SampleReport


@dataclass(frozen=True)
class _Job:
    """A task with the reference of its weights, and how often it has lost its actor."""

    task: PromptTask
    weights: ray.ObjectRef
    tries: int


@dataclass(frozen=True)
class _Running:
    job: _Job
    seat: ActorSlot
    place: Place
    trajectory: ray.ObjectRef
    images: ray.ObjectRef
    began: float
    deadline: float


@dataclass(frozen=True)
class Member:
    """An actor that is ready. seat: its number in the pool."""

    seat: int
    place: Place


class ActorPool:
    """A pool of actor processes. Tasks wait in a queue here; a ready actor holds at most tasks_in_flight of
    them, the others none."""

    def __init__(self, config: Config, seats: ActorSlots) -> None:
        self._section: ActorsSection = config.actors
        self._seats = seats
        self._queue: deque[_Job] = deque()
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._balance: Balance[ActorSlot] = Balance(config.actors.tasks_in_flight)
        self._new: list[ray.ObjectRef] = []
        self._redone = 0
        self._is_closed = False

    @staticmethod
    def start(config: Config) -> ActorPool:
        """Ask for actors.minimum processes. Wait on `references` until so many are ready; then `grow`."""
        seats = ActorSlots(config)
        seats.ask_for(config.actors.minimum)
        return ActorPool(config, seats)

    def grow(self) -> None:
        """Ask for the rest, up to actors.count: once all else that needs room in the cluster has it."""
        self._seats.ask_for(self._section.count)

    def expect(self, base: str) -> None:
        """See ActorSlots.expect."""
        self._seats.expect(base)

    @property
    def references(self) -> list[ray.ObjectRef]:
        """What to wait for: each becomes ready when a task is done, or an actor is ready or has died."""
        return [*self._running, *self._seats.arrivals]

    def take_new(self) -> list[ray.ObjectRef]:
        """Those of `references` that have come since the last call; some may be taken in already."""
        new, self._new = [*self._new, *self._seats.take_new()], []
        return new

    @property
    def members(self) -> list[Member]:
        """The actors that are ready, by seat."""
        found = [Member(seat.number, place) for seat, place in self._seats.ready.items()]
        return sorted(found, key=lambda member: member.seat)

    @property
    def is_enough(self) -> bool:
        """Whether actors.minimum actors are ready."""
        return len(self._seats.ready) >= self._section.minimum

    @property
    def waiting(self) -> int:
        """Tasks that no actor has room for."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Tasks that actors hold."""
        return len(self._running)

    @property
    def restarts(self) -> int:
        """Actors replaced so far."""
        return self._seats.replaced

    @property
    def redone(self) -> int:
        """Tasks begun again so far."""
        return self._redone

    @property
    def ready_s(self) -> float:
        """Seconds that actors have been ready so far, summed over actors."""
        return self._seats.ready_s

    def in_work(self) -> list[str]:
        """Each task that an actor holds, in words: who, where, what, how long, the oldest first; and how many
        tasks wait."""
        now = time.monotonic()
        held = [
            f"actor {one.seat.number} (pid {one.place.pid}, node {one.place.node[:8]}): "
            f"{one.job.task.prompt!r}, for {now - one.began:.0f} s"
            for one in sorted(self._running.values(), key=lambda one: one.began)
        ]
        return [*held, *([f"{len(self._queue)} tasks wait for an actor"] if self._queue else [])]

    def in_start(self) -> list[str]:
        """How many actors are ready, and how many are not yet, in words."""
        ready, coming = len(self._seats.ready), len(self._seats.arrivals)
        return [
            f"{ready} actors are ready, of actors.minimum = {self._section.minimum}; {coming} wait for room "
            "in the cluster, or load the model"
        ]

    def submit(self, task: PromptTask, weights: ray.ObjectRef) -> None:
        """Queue a task; it starts as soon as an actor has room. Raises StuckError after `shutdown`."""
        if self._is_closed:
            raise StuckError(f"The actors have been ended, so {task.prompt!r} cannot be sampled.")
        self._queue.append(_Job(task, weights, tries=0))
        self._feed()

    def forget_waiting(self) -> None:
        """Give up the tasks that no actor has yet; those begun come to their end."""
        self._queue.clear()

    def complete(self, reference: ray.ObjectRef) -> list[Sampled]:
        """Take in one ready reference: a finished task, or none where an actor arrived or died, or where the
        reference is not one of `references`.

        The tasks of an actor that died are queued again, and those whose answer is lost. Raises the task's
        own error where sampling failed, StuckError where actors die more often than allowed, or an answer
        cannot be fetched.
        """
        if reference not in self._running:
            for seat in self._seats.arrive(reference):
                self._balance.join(seat)
            self._feed()
            return []
        running = self._running.pop(reference)
        try:
            report: SampleReport = ray.get(reference, timeout=FETCH_LIMIT_S)
        except RayTaskError as error:
            raise _own_error(error) from error
        except DEATHS as error:
            self._balance.leave(running.seat)
            self._seats.mark_dead(running.seat, error)
            self._again(running, error)
            self._feed()
            return []
        except GetTimeoutError as error:
            raise StuckError(
                f"The report of actor {running.seat.number} (node {running.place.node[:8]}) on "
                f"{running.job.task.prompt!r} is there, but could not be fetched in {FETCH_LIMIT_S:.0f} s."
            ) from error
        except ObjectLostError:
            # The answer had been given, and went with its node; the actor's next task tells of its death.
            self._balance.done(running.seat)
            self._redo(running.job)
            self._feed()
            return []
        self._balance.done(running.seat)
        self._feed()
        return [Sampled(running.job.task, running.trajectory, running.images, report)]

    def check_deadlines(self) -> None:
        """Raise StuckError where a task has been running for longer than actors.timeout_s, or too few actors
        have been ready for so long."""
        # Tasks are begun in the order of their deadlines.
        oldest = next(iter(self._running.values()), None)
        if oldest and time.monotonic() > oldest.deadline:
            raise StuckError(self._late())
        self._seats.check_enough(self._section.timeout_s)

    def _late(self) -> str:
        now = time.monotonic()
        late = [running for running in self._running.values() if now > running.deadline]
        prompts = ", ".join(repr(running.job.task.prompt) for running in late[:3])
        return (
            f"{len(late)} sampling tasks have run for more than actors.timeout_s = "
            f"{self._section.timeout_s} s "
            f"(actors {sorted({running.seat.number for running in late})}; prompts {prompts}). "
            "Raise the limit, or look at the actors' logs."
        )

    def check_start(self, limit_s: float) -> None:
        """Raise StuckError where fewer than actors.minimum are ready after limit_s."""
        self._seats.check_enough(limit_s)

    def shutdown(self) -> None:
        """End the processes. Tasks that wait or run are given up, and no more are taken."""
        self._is_closed = True
        self._balance = Balance(self._section.tasks_in_flight)
        self._queue.clear()
        self._running.clear()
        self._seats.close()

    def _feed(self) -> None:
        """Give waiting tasks to the ready actors with the fewest, up to tasks_in_flight each."""
        while self._queue:
            seats = self._balance.give()
            if not seats:
                return
            self._begin(self._queue.popleft(), seats[0])

    def _begin(self, job: _Job, seat: ActorSlot) -> None:
        method = seat.process.sample.options(num_returns=3)
        trajectory, images, report = method.remote(job.task, job.weights)
        # Tasks wait their turn in the actor's own queue: each may take the limit once per place in it.
        now = time.monotonic()
        deadline = now + self._section.timeout_s * self._section.tasks_in_flight
        place = self._seats.ready[seat]
        self._running[report] = _Running(job, seat, place, trajectory, images, now, deadline)
        self._new.append(report)

    def _again(self, running: _Running, error: Gone) -> None:
        """Queue a task whose actor died. The death of a whole node is not held against the task."""
        job = running.job
        blamed = not self._seats.is_of_node(running.place.node, error)
        job = replace(job, tries=job.tries + int(blamed))
        if job.tries > self._section.task_retries:
            raise StuckError(
                f"The task of prompt {job.task.prompt!r} lost its actor {job.tries} times, more than "
                f"actors.task_retries = {self._section.task_retries} allows; it may be what kills them. "
                f"The last: {error}"
            ) from error
        self._redo(job)

    def _redo(self, job: _Job) -> None:
        self._redone += 1
        self._queue.appendleft(job)


def _own_error(error: RayTaskError) -> BaseException:
    """The error that the actor raised, without Ray's wrapping where it is one of ours."""
    return error.cause if isinstance(error.cause, PrdpError) else error
