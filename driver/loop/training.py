"""Algorithm 1 of the paper over references: sample, score, K proximal updates, publish; then look at what
came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ray.exceptions import ObjectLostError, RayError

from common.config.load import config_to_yaml
from common.config.schema import Config
from common.errors import CheckpointError, PrdpError, WeightsError
from common.stopwatch import Stopwatch
from common.trajectory import ScoredGroup
from driver.loop.evaluation import PromptSets, evaluate
from driver.loop.faults import FaultCounter
from driver.loop.learner import FaultTolerantLearner, RewindNeeded
from driver.loop.published import Published
from driver.loop.rollouts import Rollouts
from driver.loop.signals import StopFlag, StopRequested
from driver.loop.source import Group, Source, lost_samples
from driver.observe.display import Phase
from driver.observe.epoch_metrics import EpochTally
from driver.observe.guards import Guards
from driver.observe.observer import Observer
from driver.run.checkpoint_manager import CheckpointManager
from driver.run.checkpoints import Checkpoints, RunState
from driver.run.folder import ResumePoint
from driver.run.recordings import TrajectoryWriter
from learner.state import Files

STOPPING = (PrdpError, RewindNeeded, RayError, OSError)
"""What stops a run, but for errors of the program."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    learner: FaultTolerantLearner
    rollouts: Rollouts
    source: Source
    prompt_sets: PromptSets
    observer: Observer
    stop: StopFlag
    faults: FaultCounter
    keeper: CheckpointManager
    guards: Guards


class Training:
    """One run, from its first epoch (or the one after a checkpoint) to its last."""

    def __init__(self, config: Config, run_id: str, tracker_run: str, parts: Parts) -> None:
        self._config = config
        self._run_id = run_id
        self._tracker_run = tracker_run
        self._parts = parts
        self._config_yaml = config_to_yaml(config)
        self._finished = 0
        self._saved: int | None = None

    def run(self, beginning: ResumePoint) -> None:
        """Train the epochs that are left. Stops with a checkpoint where a stop is asked for.

        Raises StopRequested after that checkpoint, and whatever else stops the run after one of the last
        finished epoch, where the learner's state can still be had. Not so after WeightsError, because nobody
        knows what the weights are, and after CheckpointError, because nothing can be written.
        """
        try:
            self._train(beginning)
        except StopRequested:
            self._save_at_stop()
            raise
        except (WeightsError, CheckpointError):
            raise
        except STOPPING:
            self._save_at_last()
            raise

    def _train(self, beginning: ResumePoint) -> None:
        """Every epoch that is left."""
        published = self._begin(beginning)
        while self._finished < self._config.run.epochs:
            self._parts.stop.check()
            try:
                published = self._train_epoch(published)
                self._after_epoch(published)
            except RewindNeeded as loss:
                published = self._rewind(beginning, loss)

    def _begin(self, beginning: ResumePoint) -> Published:
        """Stand where the beginning is."""
        self._finished = epoch = beginning.epoch
        self._saved = beginning.checkpoint.state.epoch if beginning.checkpoint else None
        published = self._parts.learner.begin(epoch, beginning.files)
        if self._evaluation_is_due() and not self._parts.observer.has_evaluated(epoch):
            self._evaluate(published)
        return published

    def _rewind(self, beginning: ResumePoint, loss: RewindNeeded) -> Published:
        """Go back to the newest checkpoint, or the beginning: the epochs since come again."""
        parts, reached = self._parts, self._finished
        parts.keeper.wait()
        checkpoint = Checkpoints.of(self._config).newest().checkpoint
        if checkpoint is not None:
            beginning = replace(beginning, epoch=checkpoint.state.epoch, checkpoint=checkpoint)
        where = f"the checkpoint after epoch {beginning.epoch}" if checkpoint else "the beginning"
        again = f"epochs {beginning.epoch + 1} to {reached + 1} are done again"
        why = [f"Back to {where}, because {loss}: {again}.", *lost_samples(self._config, beginning.epoch)]
        parts.observer.rewound(beginning.epoch, " ".join(why))
        parts.source.forget()
        parts.learner.restart()
        return self._begin(beginning)

    def _train_epoch(self, published: Published) -> Published:
        """One epoch of Algorithm 1."""
        parts, started, epoch = self._parts, Stopwatch.now(), self._finished
        parts.source.prepare(epoch, published)
        tally = EpochTally.start(self._config, published.nbytes)
        parts.observer.phase(Phase.SAMPLING, self._config.trajectories_per_epoch)
        parts.learner.begin_epoch()
        groups = []
        for position, group in enumerate(self._groups(epoch)):
            parts.learner.take_in(group)
            groups.append(group)
            tally = tally.with_group(group, published.stamp)
            parts.observer.group_scored(epoch + 1, position, group.score.scorers)
            parts.observer.progress(tally.trajectories)
        parts.observer.phase(Phase.LEARNING, self._config.objective.updates_per_epoch, "updates")
        reports, renewed = parts.learner.finish_epoch()
        # First of all: whatever fails from here on, a checkpoint is one after this epoch.
        self._finished = epoch + 1
        rewards = parts.rollouts.reward_reports()
        work = started.until_now()
        parts.observer.epoch_worked(epoch + 1, work, parts.rollouts.take_history(), reports)
        metrics = tally.metrics(reports, rewards, parts.faults.since_last(), work.seconds)
        alarms = parts.guards.after_epoch(epoch + 1, reports, metrics)
        parts.observer.epoch_done(epoch + 1, {**metrics, **alarms})
        parts.guards.check_updates(epoch + 1, reports, map(self._scored, groups))
        return renewed

    def _groups(self, epoch: int) -> Iterator[Group]:
        """The epoch's groups; recorded on the way where data.record asks for it."""
        groups = self._parts.source.groups(epoch)
        if not self._config.data.record:
            yield from groups
            return
        kept: list[Group] = []
        for group in groups:
            kept.append(group)
            yield group
        base = self._parts.learner.facts().base
        writer = TrajectoryWriter(self._config.run_folder / "trajectories", base=base)
        writer.write_sound(epoch, map(self._scored, kept))

    def _after_epoch(self, published: Published) -> None:
        """Save and evaluate after the epochs that the configuration names, and always after the last.

        What is evaluated as one of the best is saved too. The evaluation comes first: a run that was killed
        between the two does both again.
        """
        self._parts.keeper.check()
        best = self._evaluation_is_due() and self._evaluate(published)
        if best or self._is_last() or self._finished % self._config.checkpoint.every_epochs == 0:
            self._save(self._parts.learner.export)

    def _evaluation_is_due(self) -> bool:
        """Before the first epoch, every so many epochs, and after the last."""
        return self._is_last() or self._finished % self._config.evaluation.every_epochs == 0

    def _is_last(self) -> bool:
        return self._finished == self._config.run.epochs

    def _evaluate(self, published: Published) -> bool:
        """Whether the policy is one of the best so far."""
        parts, started = self._parts, time.perf_counter()
        total = (
            sum(len(prompts) for prompts in parts.prompt_sets.values())
            * self._config.evaluation.images_per_prompt
        )
        parts.observer.phase(Phase.EVALUATING, total)
        evaluation = evaluate(
            self._config,
            parts.rollouts,
            parts.prompt_sets,
            self._finished,
            published,
            parts.observer.group_scored,
        )
        rewards = parts.rollouts.reward_reports()
        parts.observer.evaluated(evaluation, rewards, time.perf_counter() - started)
        return parts.keeper.after_evaluation(evaluation)

    def _save(self, export: Callable[[], Files]) -> None:
        """Have the checkpoint after the epochs finished so far written, unless it is there."""
        finished = self._finished
        if finished == self._saved:
            return
        self._parts.observer.phase(Phase.CHECKPOINTING, 0)
        state = RunState(self._run_id, finished, self._parts.source.cursor(finished), self._tracker_run)
        sound = self._parts.guards.sound_epochs(finished)
        self._parts.keeper.save(state, self._config_yaml, export(), sound)
        self._saved = finished

    def _save_at_stop(self) -> None:
        """Keep the last finished epoch of a run that is asked to stop.

        A stop is only noticed before an epoch's first update, so the learner's weights are those.
        """
        try:
            self._save(self._parts.learner.export)
        except (WeightsError, CheckpointError):
            raise
        except STOPPING:
            self._save_at_last()

    def _save_at_last(self) -> None:
        """Keep the last finished epoch of a run that fails, where the learner's state can still be had."""
        # Tasks past their limit would end every later wait too, and a new learner may need the room.
        try:
            self._parts.rollouts.end_sampling()
            self._save(self._parts.learner.rescue)
        except STOPPING as error:
            self._parts.observer.note(f"The last finished epoch could not be saved: {error}")

    def _scored(self, group: Group) -> ScoredGroup:
        """With its trajectories, fetched to this process; sampled again where they were lost. Waits."""
        fetch = self._parts.rollouts.fetch
        try:
            return ScoredGroup(fetch(group.trajectory, "a group's trajectories"), group.score)
        except ObjectLostError:
            return ScoredGroup(fetch(group.again().trajectory, "a group's trajectories"), group.score)
