"""Sampling and scoring in flight: the one place where the driver waits.

consumes: tasks with the reference of their weights. produces: each epoch's groups, scored, in prompt order.
waits for: actors, the reward service and, on request, the learner: always for all of them at once, so that
groups move on
while anybody works. unblocked by: whichever answers first. Every wait is cut into short ones, between which
deadlines are
looked at, and stop requests while groups are collected: a learner that has begun an epoch's updates finishes
them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError

from actors.actor import SampleReport
from actors.pool import ActorPool, Sampled
from common.errors import PrdpError, RewardError, StuckError
from common.trajectory import GroupScore, PromptTask
from driver.loop.arrivals import Arrivals, ready_of
from driver.loop.published import Published
from driver.loop.reward_thread import RewardThread
from driver.loop.stalls import StallReporter
from driver.observe.history import GroupHistory, HistoryLog
from driver.observe.queues import InFlight, Watch, unwatched
from reward_service.client.report import RewardReport
from reward_service.client.reward_sum import RewardSum
from reward_service.contract.results import RewardFailure

WAIT_SLICE_S = 0.5
FETCH_LIMIT_S = 30.0
FETCH_TRIES = 10
LOST_TRIES = 5
"""How often one group's pictures may be lost with their node before that counts as a failed score."""


@dataclass(frozen=True)
class ScoredReference:
    """A scored group as the driver holds it: references to what is big, and the score."""

    task: PromptTask
    weights: Published
    trajectory: ray.ObjectRef
    images: ray.ObjectRef
    score: GroupScore
    report: SampleReport


Outcome = ScoredReference | RewardFailure


@dataclass(frozen=True)
class Batch:
    """The tasks of one epoch or one evaluation. with_gold: score by the gold rewards too."""

    tasks: tuple[PromptTask, ...]
    with_gold: bool


@dataclass(frozen=True)
class _Begun:
    """What is known of a task in flight. lost: how often its pictures were lost with their node."""

    weights: Published
    with_gold: bool
    lost: int = 0


class Rollouts:
    """Moves groups from actors to rewards. Bounded by what is submitted: at most max_staleness + 1 epochs."""

    def __init__(
        self,
        pool: ActorPool,
        rewards: RewardSum,
        max_dropped_share: float,
        check_stop: Callable[[], None],
        patience: StallReporter,
        watch: Watch = unwatched,
    ) -> None:
        self._pool = pool
        self._rewards = rewards
        self._asking = RewardThread(rewards)
        self._max_dropped_share = max_dropped_share
        self._check_stop = check_stop
        self._patience = patience
        self._watch = watch
        self._arrivals: Arrivals[ray.ObjectRef] = Arrivals(ready_of)
        self._begun: dict[PromptTask, _Begun] = {}
        self._unsent: deque[Sampled] = deque()
        self._scoring: dict[ray.ObjectRef, Sampled] = {}
        self._outcomes: dict[PromptTask, Outcome] = {}
        self._renewed: dict[PromptTask, list[Sampled]] = {}
        self._dropped = 0
        self._scored_images = 0
        self._history = HistoryLog()

    @property
    def dropped(self) -> int:
        """Groups left out since the start, because they could not be scored."""
        return self._dropped

    def reward_reports(self) -> dict[str, RewardReport]:
        """What each reward did since the last call, by name."""
        return self._rewards.take_reports()

    def in_flight(self) -> InFlight:
        """How much is where."""
        return InFlight(
            actors_waiting=self._pool.waiting,
            actors=self._pool.running,
            reward_waiting=len(self._unsent),
            rewards=self._rewards.outstanding,
            scored=len(self._outcomes),
            asked=self._rewards.asked(),
            scored_images=self._scored_images,
        )

    def take_history(self) -> list[GroupHistory]:
        """Who sampled and scored the groups since the last call, and when; of very many, the last."""
        return self._history.take(self._rewards.take_asks())

    def begin(self, batch: Batch, weights: Published) -> None:
        """Queue all tasks of a batch."""
        for task in batch.tasks:
            self._begun[task] = _Begun(weights, batch.with_gold)
            self._pool.submit(task, weights.reference)

    def forget(self) -> None:
        """Give up everything that has begun. Answers that still come are left aside."""
        self._pool.forget_waiting()
        for waiting in (self._begun, self._unsent, self._outcomes):
            waiting.clear()

    def end_sampling(self) -> None:
        """Give up everything that has begun, and end the actors: the run is about to stop."""
        self.forget()
        self._pool.shutdown()

    def again(self, group: ScoredReference) -> Sampled:
        """Sample a group once more, to the same bits, because what was sampled is lost. Waits for it.

        Raises StuckError after `end_sampling`.
        """
        self._pool.submit(group.task, group.weights.reference)
        found = self._renewed.setdefault(group.task, [])
        while not found:
            self._turn("")
        del self._renewed[group.task]
        return found[0]

    def collect(self, batch: Batch) -> Iterator[ScoredReference]:
        """The batch's groups in prompt order, each as soon as it and those before it are scored.

        Groups whose score failed are left out. Raises RewardError once more than max_dropped_share were.
        """
        dropped: list[RewardFailure] = []
        for task in batch.tasks:
            while task not in self._outcomes:
                self._check_stop()
                self._turn("")
            outcome = self._outcomes.pop(task)
            del self._begun[task]
            if isinstance(outcome, ScoredReference):
                yield outcome
                continue
            dropped.append(outcome)
            self._dropped += 1
            if len(dropped) > self._max_dropped_share * len(batch.tasks):
                raise RewardError(
                    f"{len(dropped)} of {len(batch.tasks)} groups could not be scored, more than "
                    f"reward_service.max_dropped_share = {self._max_dropped_share} allows. The last: "
                    f"{outcome.reason}"
                )

    def wait(self, references: Sequence[ray.ObjectRef], what: str, limit_s: float) -> list[Any]:
        """The values of references, while groups move on; an error is raised as soon as it is known.

        Raises StuckError after limit_s, naming `what`.
        """
        deadline = time.monotonic() + limit_s
        values: dict[ray.ObjectRef, Any] = {}
        missing = set(references)
        for reference in references:
            self._arrivals.watch(reference)
        while missing:
            left = deadline - time.monotonic()
            if left < 0:
                raise StuckError(
                    f"Waited {limit_s:.0f} s for {what}, in vain. Raise the limit, or look at its logs."
                )
            for reference in self._turn(what):
                if reference in missing:
                    values[reference] = _value(reference, left + WAIT_SLICE_S, what)
                    missing.remove(reference)
        return [values[reference] for reference in references]

    def fetch(self, reference: ray.ObjectRef, what: str) -> Any:
        """The value of a large object that has been made. what: names it, e.g. in notes while it takes long.

        Raises ObjectLostError where it is lost, StuckError where it does not come.
        """
        for _ in range(FETCH_TRIES):
            try:
                return ray.get(reference, timeout=FETCH_LIMIT_S)
            except GetTimeoutError:
                self._turn(f"{what} to come to the driver")
        raise StuckError(
            f"Waited {FETCH_TRIES * FETCH_LIMIT_S:.0f} s for {what} to come to the driver, in vain. Look at "
            "the network between the nodes."
        )

    def _turn(self, what: str) -> list[ray.ObjectRef]:
        """Wait a moment for anything at all, and move on what is ready. Returns what is ready.

        what: the run waits for besides, in words.
        """
        self._pool.check_deadlines()
        for reference in self._pool.take_new():
            self._arrivals.watch(reference)
        ready = self._arrivals.take(min(WAIT_SLICE_S, self._asking.poll_s))
        if ready:
            self._patience.moved()
        else:
            waits = [f"the run waits for {what}"] if what else []
            self._patience.look(lambda: [*waits, *self._pool.in_work(), *self._rewards.in_work()])
        for reference in ready:
            self._take_samples(self._pool.complete(reference))
        self._take_scores()
        self._send_to_rewards()
        self._watch(self.in_flight)
        return ready

    def _take_samples(self, samples: Sequence[Sampled]) -> None:
        for sampled in samples:
            if sampled.task in self._renewed:
                self._renewed[sampled.task].append(sampled)
            elif sampled.task in self._begun:
                self._unsent.append(sampled)

    def _send_to_rewards(self) -> None:
        while self._unsent:
            sampled = self._unsent.popleft()
            task = sampled.task
            # After `forget` a task can come in twice.
            if task not in self._begun:
                continue
            with_gold = self._begun[task].with_gold
            self._asking.submit(task.prompt, sampled.images, task.images, with_gold)
            self._scoring[sampled.images] = sampled

    def _take_scores(self) -> None:
        for images, answer in self._asking.collect():
            sampled = self._scoring.pop(images)
            task = sampled.task
            if task not in self._begun or task in self._outcomes:
                continue
            begun, is_scored = self._begun[task], not isinstance(answer, RewardFailure)
            self._history.add(images.hex(), task, sampled.report, is_scored)
            self._scored_images += task.images if is_scored else 0
            if not isinstance(answer, RewardFailure):
                self._outcomes[task] = ScoredReference(
                    task, begun.weights, sampled.trajectory, sampled.images, answer, sampled.report
                )
            elif begun.lost < LOST_TRIES and _is_lost(sampled.images):
                self._begun[task] = replace(begun, lost=begun.lost + 1)
                self._pool.submit(task, begun.weights.reference)
            else:
                self._outcomes[task] = answer


def _is_lost(reference: ray.ObjectRef) -> bool:
    """Whether an object that was made is gone, with the node that held it."""
    try:
        ray.get(reference, timeout=FETCH_LIMIT_S)
    except ObjectLostError:
        return True
    except (RayError, GetTimeoutError):
        return False
    return False


def _value(reference: ray.ObjectRef, limit_s: float, what: str) -> Any:
    """ray.get, raising our own error where the process raised one."""
    try:
        return ray.get(reference, timeout=limit_s)
    except GetTimeoutError as error:
        raise StuckError(
            f"{what.capitalize()}: the answer could not be fetched in {limit_s:.0f} s."
        ) from error
    except RayTaskError as error:
        if isinstance(error.cause, PrdpError):
            raise error.cause from error
        raise
