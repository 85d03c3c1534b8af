"""Algorithm 1 of the paper over references: sample, score, K proximal updates, publish; then look at what
came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ray.exceptions import ObjectLostError, RayError

from common.cluster.process_failures import own_error
from common.cluster.references import first_line
from common.config.load import config_to_yaml
from common.config.schema import Config
from common.errors import CheckpointError, PrdpError, StuckError, WeightsError
from common.stopwatch import Busy, Stopwatch
from common.trajectory import ScoredGroup
from driver.loop.advantages import Advantages
from driver.loop.evaluation import Evaluator
from driver.loop.faults import FaultCounter
from driver.loop.learner import FaultTolerantLearner, Reports
from driver.loop.ranks import Published, RewindNeeded
from driver.loop.rollouts import Group, Rollouts
from driver.loop.source import OfflineSource, OnlineSource, lost_samples
from driver.observe.display import Phase
from driver.observe.epoch_metrics import EpochTally
from driver.observe.guards import Guards
from driver.observe.observer import Observer
from driver.run.checkpoint_manager import CheckpointManager
from driver.run.checkpoints import Checkpoints, RunState
from driver.run.folder import ResumePoint
from driver.run.recordings import TrajectoryWriter
from driver.stop import StopFlag, StopRequested
from learner.state import Files

REWINDS = 20
"""How often a run may come back to the same epoch."""
STOPPING = (PrdpError, RewindNeeded, RayError, OSError)
"""What stops a run, but for errors of the program."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of. recorder: where data.record asks for one."""

    learner: FaultTolerantLearner
    rollouts: Rollouts
    source: OnlineSource | OfflineSource
    evaluator: Evaluator
    observer: Observer
    stop: StopFlag
    faults: FaultCounter
    keeper: CheckpointManager
    guards: Guards
    advantages: Advantages
    recorder: TrajectoryWriter | None


class Training:
    """One run, from its first epoch (or the one after a checkpoint) to its last. state: names the run."""

    def __init__(self, config: Config, state: RunState, parts: Parts) -> None:
        self._config = config
        self._state = state
        self._parts = parts
        self._config_yaml = config_to_yaml(config)
        self._finished = 0
        self._saved: int | None = None
        self._recording: asyncio.Task[None] | None = None

    async def run(self, beginning: ResumePoint) -> None:
        """Train the epochs that are left. Stops with a checkpoint where a stop is asked for.

        Raises StopRequested after that checkpoint, and whatever else stops the run after one of the last
        finished epoch, where the learner's state can still be had. Not so after WeightsError, because nobody
        knows what the weights are, and after CheckpointError, because nothing can be written.
        """
        try:
            await self._train(beginning)
            await self._recorded()
        except StopRequested:
            await self._save_at_stop()
            raise
        except (WeightsError, CheckpointError):
            raise
        except STOPPING:
            await self._save_at_last()
            raise

    async def _train(self, beginning: ResumePoint) -> None:
        """Every epoch that is left. Raises StuckError where it comes back to one place again and again."""
        places: list[int] = []
        while True:
            try:
                await self._train_from(beginning)
                return
            except RewindNeeded as loss:
                beginning = await self._rewind(beginning, loss)
                places.append(beginning.epoch)
                if places.count(beginning.epoch) > REWINDS:
                    raise StuckError(
                        f"The run came back to epoch {beginning.epoch} more than {REWINDS} times: {loss}. "
                        "Are nodes stable?"
                    ) from loss

    async def _train_from(self, beginning: ResumePoint) -> None:
        published = await self._begin(beginning)
        while self._finished < self._config.run.epochs:
            self._parts.stop.check()
            published = await self._train_epoch(published)
            await self._after_epoch(published)

    async def _begin(self, beginning: ResumePoint) -> Published:
        """Stand where the beginning is."""
        self._finished = epoch = beginning.epoch
        self._saved = epoch if beginning.checkpoint else None
        self._parts.advantages.begin(beginning.history)
        published = await self._parts.learner.begin(epoch, beginning.files)
        if self._evaluation_is_due() and not self._parts.observer.has_evaluated(epoch):
            await self._evaluate(published)
        return published

    async def _rewind(self, beginning: ResumePoint, loss: RewindNeeded) -> ResumePoint:
        """The newest checkpoint, or the beginning, to go back to: the epochs since come again."""
        parts, reached = self._parts, self._finished
        await asyncio.to_thread(parts.keeper.wait)
        checkpoint = Checkpoints.of(self._config).newest().checkpoint
        if checkpoint is not None:
            beginning = replace(beginning, epoch=checkpoint.state.epoch, checkpoint=checkpoint)
        where = f"the checkpoint after epoch {beginning.epoch}" if checkpoint else "the beginning"
        again = f"epochs {beginning.epoch + 1} to {reached + 1} are done again"
        lost = lost_samples(self._config, beginning.epoch)
        why = f"Back to {where}, because {loss}: {again}."
        parts.observer.rewound(beginning.epoch, f"{why} {lost}" if lost else why)
        parts.rollouts.forget()
        parts.source.forget()
        parts.learner.restart()
        return beginning

    async def _train_epoch(self, published: Published) -> Published:
        """One epoch of Algorithm 1."""
        parts, started, epoch = self._parts, Stopwatch.now(), self._finished
        parts.source.prepare(epoch, published)
        tally = EpochTally.start(self._config, published.nbytes)
        parts.observer.phase(Phase.SAMPLING, self._config.trajectories_per_epoch)
        parts.learner.begin_epoch()
        groups: list[Group] = []
        async for group in parts.advantages.of(parts.source.groups(epoch)):
            await parts.learner.submit(group)
            parts.observer.group_scored(epoch + 1, len(groups), group.score.scorers)
            groups.append(group)
            tally = tally.with_group(group.score, group.report, published.stamp)
            parts.observer.progress(tally.trajectories)
        parts.observer.phase(Phase.LEARNING, self._config.objective.updates_per_epoch, "updates")
        reports, renewed = await parts.learner.finish_epoch(self._updated)
        # First of all: whatever fails from here on, a checkpoint is one after this epoch.
        self._finished = epoch + 1
        parts.advantages.finish_epoch()
        changed = renewed.stamp.digest != published.stamp.digest
        self._report(tally, reports, started.until_now(), changed)
        await asyncio.to_thread(parts.guards.check_updates, epoch + 1, reports, self._fetched(groups))
        parts.guards.check_learning(epoch + 1)
        if parts.recorder:
            await self._record(parts.recorder, epoch, groups)
        return renewed

    def _updated(self, updates: int) -> None:
        """So many of the epoch's updates are made."""
        self._parts.observer.progress(updates)
        if updates == self._config.objective.updates_per_epoch:
            self._parts.observer.phase(Phase.PUBLISHING, 0)

    def _report(self, tally: EpochTally, reports: Reports, work: Busy, weights_changed: bool) -> None:
        """Tell what came of the epoch that is finished."""
        parts, epoch = self._parts, self._finished
        rewards = parts.rollouts.reward_reports()
        parts.observer.epoch_worked(epoch, work, parts.rollouts.take_history(), reports)
        metrics = tally.metrics(reports, rewards, parts.faults.since_last(), work.seconds)
        tied = tally.nothing_differs(parts.advantages.across_prompts)
        alarms = parts.guards.after_epoch(epoch, reports, metrics, tied, weights_changed)
        parts.observer.epoch_done(epoch, {**metrics, **alarms})

    async def _record(self, writer: TrajectoryWriter, epoch: int, groups: Sequence[Group]) -> None:
        """Have an epoch's groups written while the next one is sampled."""
        await self._recorded()
        writing = asyncio.to_thread(writer.write_sound, epoch, self._fetched(groups))
        self._recording = asyncio.create_task(writing)

    async def _recorded(self) -> None:
        """Until nothing is being recorded. Raises RecordingError."""
        if self._recording:
            recording, self._recording = self._recording, None
            await recording

    async def _after_epoch(self, published: Published) -> None:
        """Save and evaluate after the epochs that the configuration names, and always after the last.

        What is evaluated as one of the best is saved too. The evaluation comes first: a run that was killed
        between the two does both again.
        """
        self._parts.keeper.check()
        best = self._evaluation_is_due() and await self._evaluate(published)
        if best or self._is_last() or self._finished % self._config.checkpoint.every_epochs == 0:
            await self._save(self._parts.learner.export)

    def _evaluation_is_due(self) -> bool:
        """Before the first epoch, every so many epochs, and after the last."""
        return self._is_last() or self._finished % self._config.evaluation.every_epochs == 0

    def _is_last(self) -> bool:
        return self._finished == self._config.run.epochs

    async def _evaluate(self, published: Published) -> bool:
        """Whether the policy is one of the best so far."""
        parts, started = self._parts, time.perf_counter()
        parts.observer.phase(Phase.EVALUATING, parts.evaluator.images)
        evaluation = await parts.evaluator.evaluate(self._finished, published)
        rewards = parts.rollouts.reward_reports()
        parts.observer.evaluated(evaluation, rewards, time.perf_counter() - started)
        return parts.keeper.after_evaluation(evaluation)

    async def _save(self, export: Callable[[], Awaitable[Files]]) -> None:
        """Have the checkpoint after the epochs finished so far written, unless it is there."""
        finished = self._finished
        if finished == self._saved:
            return
        self._parts.observer.phase(Phase.CHECKPOINTING, 0)
        state = replace(
            self._state,
            epoch=finished,
            history=self._parts.advantages.finished.rewards,
        )
        sound = self._parts.guards.sound_epochs(finished)
        files = await export()
        # It waits where an earlier checkpoint is still being written.
        await asyncio.to_thread(self._parts.keeper.save, state, self._config_yaml, files, sound)
        self._saved = finished

    async def _save_at_stop(self) -> None:
        """Keep the last finished epoch of a run that is asked to stop.

        A stop is only noticed before an epoch's first update, so the learner's weights are those.
        """
        try:
            await self._recorded()
            await self._save(self._parts.learner.export)
        except (WeightsError, CheckpointError):
            raise
        except STOPPING:
            await self._save_at_last()

    async def _save_at_last(self) -> None:
        """Keep the last finished epoch of a run that fails, where the learner's state can still be had."""
        # Tasks past their limit would end every later wait too, and a new learner may need the room.
        try:
            self._parts.rollouts.end_sampling()
            await self._save(self._parts.learner.rescue)
        except STOPPING as error:
            told = own_error(error) or first_line(error)
            self._parts.observer.note(f"The last finished epoch could not be saved: {told}")

    def _fetched(self, groups: Sequence[Group]) -> Iterator[ScoredGroup]:
        """With their trajectories, fetched to this process one by one. For a thread beside the event loop."""
        loop = asyncio.get_running_loop()
        return (asyncio.run_coroutine_threadsafe(self._scored(group), loop).result() for group in groups)

    async def _scored(self, group: Group) -> ScoredGroup:
        """With its trajectories; sampled again where they were lost."""
        rollouts, what = self._parts.rollouts, "a group's trajectories"
        try:
            trajectory = await rollouts.fetch(group.trajectory, what)
        except ObjectLostError:
            trajectory = await rollouts.fetch((await rollouts.sample_again(group)).trajectory, what)
        return ScoredGroup(trajectory, group.score, group.advantages)
