"""A group's life until it is learned: sampled, scored, and given out in prompt order. One coroutine a group.

consumes: tasks with the reference of their weights. produces: each epoch's groups, scored, in prompt order.
waits for: actors and rewards, group by group, so that groups move on while the run awaits anything else.
unblocked by: the actors and rewards; each has its own limits. A stop request is looked at between groups.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError

from actors.actor import SampleReport
from actors.pool import ActorPool, Sampled, WeightsLost
from common.cluster.references import FETCH_LIMIT_S, fetch
from common.errors import RewardError, StuckError, no_picture
from common.trajectory import Float64, GroupScore, PromptTask
from driver.loop.ranks import RewindNeeded
from driver.observe.gauges import InFlight
from driver.observe.timeline_log import GroupHistory, HistoryLog
from driver.run.prompts import TRAINING_STREAM
from driver.stalls import StallReporter
from driver.stop import StopFlag
from reward_service.client.report import RewardReport
from reward_service.client.reward_sum import RewardSum
from reward_service.contract.results import RewardFailure

IMAGE_TRIES = 5
"""How often one group's images may be lost with their node before that counts as a failed score."""
FETCH_TRIES = 10
BEAT_S = 1.0


@dataclass(frozen=True)
class Group:
    """A scored group as the driver holds it: references to what is big, and the score.

    weights, images: None where the group was recorded. advantages: float64 (B,), where the objective has any.
    """

    task: PromptTask
    weights: ray.ObjectRef | None
    trajectory: ray.ObjectRef
    images: ray.ObjectRef | None
    score: GroupScore
    report: SampleReport
    advantages: Float64 | None = None


GroupOrFailure = Group | RewardFailure
BegunRollouts = deque[asyncio.Task[GroupOrFailure]]
"""The rollouts of an epoch or an evaluation, in prompt order."""


class Rollouts:
    """Groups on their way from actors to rewards. Bounded by what is begun: at most max_staleness + 1
    epochs."""

    def __init__(
        self,
        pool: ActorPool,
        rewards: RewardSum,
        max_dropped_share: float,
        stop: StopFlag,
        stalls: StallReporter,
    ) -> None:
        self._pool = pool
        self._rewards = rewards
        self._max_dropped_share = max_dropped_share
        self._stop = stop
        self._stalls = stalls
        self._begun: set[asyncio.Task[GroupOrFailure]] = set()
        self._failed: asyncio.Future[GroupOrFailure] | None = None
        self._scored_images = 0
        self._history = HistoryLog()
        self.dropped = 0
        """Groups left out since the start, because they could not be scored."""

    def begin(self, tasks: Sequence[PromptTask], weights: ray.ObjectRef, with_gold: bool) -> BegunRollouts:
        """Start the rollouts of an epoch or an evaluation. with_gold: score by the gold rewards too."""
        loop = asyncio.get_running_loop()
        if self._failed is None:
            self._failed = loop.create_future()
            self._failed.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        running: BegunRollouts = deque()
        for task in tasks:
            one = loop.create_task(self.rollout(task, weights, with_gold))
            one.add_done_callback(self._ended)
            running.append(one)
        self._begun.update(running)
        return running

    async def rollout(self, task: PromptTask, weights: ray.ObjectRef, with_gold: bool) -> GroupOrFailure:
        """Sample a task and score its images; sampled again, to the same bits, where the images were lost.

        A failure in an evaluation where latents are not finite: its black images would be scored. In training
        the learner tells of them, see BadGroup. Raises RewindNeeded where the weights are lost.
        """
        lost = 0
        while True:
            sampled = await self._sample(task, weights)
            self._stalls.moved()
            if task.noise.stream != TRAINING_STREAM and not sampled.report.is_finite:
                return RewardFailure(no_picture(task.prompt))
            score = await self._rewards.score(task.prompt, sampled.images, task.num_images, with_gold)
            self._stalls.moved()
            is_scored = not isinstance(score, RewardFailure)
            self._history.add(sampled.images.hex(), task, sampled.report, is_scored)
            if not isinstance(score, RewardFailure):
                self._scored_images += task.num_images
                return Group(task, weights, sampled.trajectory, sampled.images, score, sampled.report)
            if lost == IMAGE_TRIES or not await _is_lost(sampled.images):
                return score
            lost += 1

    async def collect(self, running: BegunRollouts) -> AsyncIterator[Group]:
        """The groups in prompt order, each as soon as it and those before it are scored.

        Groups whose score failed are left out. Raises RewardError once more than max_dropped_share were,
        StopRequested, and what stopped any rollout, also one that is not collected yet.
        """
        begun, dropped = len(running), 0
        while running:
            outcome = await self._next(running.popleft())
            if isinstance(outcome, Group):
                yield outcome
                continue
            dropped += 1
            self.dropped += 1
            if dropped == 1:
                # Of an epoch or evaluation, the first; how many there are is a metric.
                self._stalls.note(f"A prompt is left out, because it could not be scored. {outcome.reason}")
            if dropped > self._max_dropped_share * begun:
                raise RewardError(
                    f"{dropped} of {begun} groups could not be scored, more than "
                    f"reward_service.max_dropped_share = {self._max_dropped_share} allows. Mend the reward, "
                    f"or allow more. The last: {outcome.reason}"
                )

    async def sample_again(self, group: Group) -> Group:
        """The same group, bit for bit, where what was sampled is lost with the node that held it.

        Raises StuckError for a recorded group, which the driver's own node holds.
        """
        if group.weights is None:
            raise StuckError(
                f"The recorded group of {group.task.prompt!r} is lost. Is the object store full?"
            )
        sampled = await self._sample(group.task, group.weights)
        return replace(group, trajectory=sampled.trajectory, images=sampled.images)

    async def fetch(self, reference: ray.ObjectRef, what: str) -> Any:
        """The value of a large object that has been made. what: names it, e.g. in notes while it takes long.

        Raises ObjectLostError where it is lost, StuckError where it does not come.
        """
        with self._stalls.waiting_for(f"{what} to come to the driver"):
            for _ in range(FETCH_TRIES):
                try:
                    return await fetch(reference)
                except GetTimeoutError:
                    continue
        raise StuckError(
            f"Waited {FETCH_TRIES * FETCH_LIMIT_S:.0f} s for {what} to come to the driver, in vain. Look at "
            "the network between the nodes."
        )

    def forget(self) -> None:
        """Give up everything that has begun, and what has failed of it."""
        for task in self._begun:
            task.cancel()
        self._begun.clear()
        self._failed = None

    def end_sampling(self) -> None:
        """Give up everything that has begun, and end the actors: the run is about to stop."""
        self.forget()
        self._pool.shutdown()

    def in_flight(self) -> InFlight:
        """How much is where."""
        return InFlight(
            actors_waiting=self._pool.waiting,
            actors=self._pool.running,
            rewards=self._rewards.outstanding,
            scored=sum(task.done() for task in self._begun),
            asked=self._rewards.asked(),
            scored_images=self._scored_images,
        )

    def reward_reports(self) -> dict[str, RewardReport]:
        """What each reward did since the last call, by name."""
        return self._rewards.take_reports()

    def take_history(self) -> list[GroupHistory]:
        """Who sampled and scored the groups since the last call, and when; of very many, the last."""
        return self._history.take(self._rewards.take_asks())

    async def watch(self, queues: Callable[[InFlight], None], learner: Callable[[], list[str]]) -> None:
        """Once a second, until cancelled: say what is new of the rewards, who is stuck where nothing moves,
        and how much is where.

        learner: what it has in work, in words.
        """
        while True:
            await asyncio.sleep(BEAT_S)
            for line in self._rewards.take_refusals():
                self._stalls.note(line)
            self._stalls.look(lambda: [*self._pool.in_work(), *self._rewards.in_work(), *learner()])
            queues(self.in_flight())

    async def _sample(self, task: PromptTask, weights: ray.ObjectRef) -> Sampled:
        try:
            return await self._pool.sample(task, weights)
        except WeightsLost as loss:
            raise RewindNeeded(f"the weights {task.stamp} were lost with the nodes that held them") from loss

    async def _next(self, running: asyncio.Task[GroupOrFailure]) -> GroupOrFailure:
        failed = self._failed or asyncio.get_running_loop().create_future()
        await self._stop.first_of(running, failed)
        self._begun.discard(running)
        return (failed if failed.done() else running).result()

    def _ended(self, task: asyncio.Task[GroupOrFailure]) -> None:
        error = None if task.cancelled() else task.exception()
        if error and self._failed and not self._failed.done():
            self._failed.set_exception(error)


async def _is_lost(reference: ray.ObjectRef) -> bool:
    """Whether an object that was made is gone, with the node that held it."""
    try:
        await fetch(reference)
    except ObjectLostError:
        return True
    except (RayError, GetTimeoutError):
        return False
    return False
