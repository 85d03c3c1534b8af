"""The Ray edge of the actors: a pool that does tasks, redoes those of dead actors, and holds only references.

consumes: PromptTask with the reference of its weights. produces: Sampled (references and a small report).
waits for: nothing itself; the driver waits on `references` and hands back what is ready. unblocked by: the
driver.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from actors.actor import Actor, SampleReport
from common.config.schema import Config
from common.config.services import ActorsSection
from common.errors import PrdpError, StuckError
from common.loading import load_policy
from common.placement import process_options
from common.trajectory import ImageGroup, PromptTask, TrajectoryGroup
from common.weights import WeightBlob


def build_actor(config: Config) -> Actor:
    """Load the model and make it ready to sample. Raises ModelError."""
    policy, distribution = load_policy(config)
    return Actor.of(policy, distribution)


class ActorProcess:
    """One actor's process. Thin: the work is Actor's."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(config.actors.threads)
        self._actor = build_actor(config)

    def ready(self) -> int:
        """This process's id, once the constructor is through."""
        return os.getpid()

    def sample(self, task: PromptTask, blob: WeightBlob) -> tuple[TrajectoryGroup, ImageGroup, SampleReport]:
        """See Actor.sample. Returns three objects, so that each can be moved alone."""
        return self._actor.sample(task, blob)


@dataclass(frozen=True)
class Sampled:
    """A finished task: references to its TrajectoryGroup and ImageGroup, and the report itself."""

    task: PromptTask
    trajectory: ray.ObjectRef
    images: ray.ObjectRef
    report: SampleReport


@dataclass(frozen=True)
class _Job:
    """A task with the reference of its weights, and how often it has been begun."""

    task: PromptTask
    weights: ray.ObjectRef
    tries: int


@dataclass(frozen=True)
class _Running:
    job: _Job
    seat: int
    process: Any
    trajectory: ray.ObjectRef
    images: ray.ObjectRef
    deadline: float


class ActorPool:
    """A pool of actor processes. Tasks wait in a queue here; each actor holds at most tasks_in_flight of
    them."""

    def __init__(self, config: Config, processes: Sequence[Any]) -> None:
        self._config = config
        self._section: ActorsSection = config.actors
        self._seats: dict[int, Any] = dict(enumerate(processes))
        self._queue: deque[_Job] = deque()
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._restarts = 0
        self._redone = 0

    @staticmethod
    def start(config: Config) -> ActorPool:
        """Create the processes. They are usable at once; `ready` says when their models are loaded."""
        return ActorPool(config, [_start_process(config) for _ in range(config.actors.count)])

    def ready(self) -> list[ray.ObjectRef]:
        """One reference an actor, ready when its model is loaded: its process id."""
        return [process.ready.remote() for process in self._seats.values()]

    @property
    def references(self) -> list[ray.ObjectRef]:
        """What to wait for: each becomes ready when a task is done or its actor has died."""
        return list(self._running)

    @property
    def restarts(self) -> int:
        """Actors replaced so far."""
        return self._restarts

    @property
    def redone(self) -> int:
        """Tasks begun again so far."""
        return self._redone

    @property
    def size(self) -> int:
        """Actors in the pool."""
        return len(self._seats)

    def submit(self, task: PromptTask, weights: ray.ObjectRef) -> None:
        """Queue a task; it starts as soon as an actor has room."""
        self._queue.append(_Job(task, weights, tries=0))
        self._feed()

    def forget_waiting(self) -> None:
        """Give up the tasks that no actor has yet; those begun come to their end."""
        self._queue.clear()

    def complete(self, reference: ray.ObjectRef) -> list[Sampled]:
        """Take in one ready reference: a finished task, or none where its actor died and the task was queued
        again.

        Raises the task's own error where sampling failed, StuckError where actors die more often than
        allowed.
        """
        running = self._running.pop(reference)
        try:
            report: SampleReport = ray.get(reference)
        except RayTaskError as error:
            raise _own_error(error) from error
        except RayActorError as error:
            self._bury(running, error)
            self._again(running.job, error)
            self._feed()
            return []
        self._feed()
        return [Sampled(running.job.task, running.trajectory, running.images, report)]

    def in_work(self) -> list[str]:
        """Who samples what and for how long, in words, and how many tasks wait."""
        now, given = time.monotonic(), self._section.timeout_s * self._section.tasks_in_flight
        lines = [
            f"actor {running.seat} has {running.job.task.prompt!r} ({now - running.deadline + given:.0f} s)"
            for running in self._running.values()
        ]
        return [*lines, *([f"{len(self._queue)} tasks wait for an actor"] if self._queue else [])]

    def check_deadlines(self) -> None:
        """Raise StuckError where a task has been running for longer than actors.timeout_s."""
        now = time.monotonic()
        late = [running for running in self._running.values() if now > running.deadline]
        if late:
            prompts = ", ".join(repr(running.job.task.prompt) for running in late[:3])
            raise StuckError(
                f"{len(late)} sampling tasks have run for more than actors.timeout_s = "
                f"{self._section.timeout_s} s "
                f"(actors {sorted({running.seat for running in late})}; prompts {prompts}). "
                "Raise the limit, or look at the actors' logs."
            )

    def shutdown(self) -> None:
        """End the processes. Tasks that wait or run are given up."""
        self._queue.clear()
        self._running.clear()
        for process in self._seats.values():
            ray.kill(process)
        self._seats.clear()

    def _feed(self) -> None:
        """Give waiting tasks to the actors with the fewest, up to tasks_in_flight each."""
        load = dict.fromkeys(self._seats, 0)
        for running in self._running.values():
            load[running.seat] += 1
        while self._queue:
            seat = min(load, key=lambda name: (load[name], name))
            if load[seat] >= self._section.tasks_in_flight:
                return
            self._begin(self._queue.popleft(), seat)
            load[seat] += 1

    def _begin(self, job: _Job, seat: int) -> None:
        method = self._seats[seat].sample.options(num_returns=3)
        trajectory, images, report = method.remote(job.task, job.weights)
        # Tasks wait their turn in the actor's own queue: each may take the limit once per place in it.
        deadline = time.monotonic() + self._section.timeout_s * self._section.tasks_in_flight
        job = replace(job, tries=job.tries + 1)
        self._running[report] = _Running(job, seat, self._seats[seat], trajectory, images, deadline)

    def _bury(self, running: _Running, error: RayActorError) -> None:
        """Replace a dead actor, once, however many of its tasks report the death."""
        if error.actor_init_failed:
            raise StuckError(f"An actor could not start: {error}") from error
        if self._seats[running.seat] is not running.process:
            return
        self._restarts += 1
        if self._restarts > self._section.restarts:
            raise StuckError(
                f"Actors died {self._restarts} times, more than actors.restarts = "
                f"{self._section.restarts} allows. "
                f"The last: {error}"
            ) from error
        # An actor that Ray only calls unavailable may live on; two in one seat would compete for its
        # resources.
        ray.kill(running.process)
        self._seats[running.seat] = _start_process(self._config)

    def _again(self, job: _Job, error: RayActorError) -> None:
        if job.tries > self._section.task_retries:
            raise StuckError(
                f"The task of prompt {job.task.prompt!r} lost its actor {job.tries} times, more than "
                f"actors.task_retries = {self._section.task_retries} allows; it may be what kills them. "
                f"The last: {error}"
            ) from error
        self._redone += 1
        self._queue.appendleft(job)


def _start_process(config: Config) -> Any:
    return ray.remote(ActorProcess).options(**process_options(config.actors), max_restarts=0).remote(config)


def _own_error(error: RayTaskError) -> BaseException:
    """The error that the actor raised, without Ray's wrapping where it is one of ours."""
    return error.cause if isinstance(error.cause, PrdpError) else error
