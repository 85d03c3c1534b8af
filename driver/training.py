"""Algorithm 1 of the paper over references: sample, score, K proximal updates, publish; then look at what
came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from common.config.load import config_to_yaml
from common.config.schema import Config
from common.evaluation import Evaluation
from common.recording import TrajectoryWriter
from common.trajectory import PolicyStamp, ScoredGroup
from common.weights import WeightBlob
from driver.display_state import Phase
from driver.epoch import EpochTally
from driver.evaluating import PromptSets, evaluate
from driver.faults import FaultCounter
from driver.keeper import Keeper
from driver.observer import Observer
from driver.rollouts import Rollouts
from driver.source import Group, Source
from driver.stop import StopFlag, StopRequested
from learner.checkpoint import RunState
from learner.group import LearnerGroup
from learner.report import UpdateReport


@dataclass(frozen=True)
class Published:
    """The newest weights: their stamp, the reference that tasks carry, and their size in bytes."""

    stamp: PolicyStamp
    reference: ray.ObjectRef
    nbytes: int


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    learner: LearnerGroup
    rollouts: Rollouts
    source: Source
    prompt_sets: PromptSets
    observer: Observer
    stop: StopFlag
    faults: FaultCounter
    keeper: Keeper


class Training:
    """One run, from its first epoch (or the one after a checkpoint) to its last."""

    def __init__(self, config: Config, run_id: str, tracker_run: str, parts: Parts) -> None:
        self._config = config
        self._run_id = run_id
        self._tracker_run = tracker_run
        self._parts = parts
        self._config_yaml = config_to_yaml(config)
        self._finished = 0
        self._saved: frozenset[int] = frozenset()

    def run(self, first_epoch: int) -> None:
        """Train epochs first_epoch .. run.epochs - 1. Stops with a checkpoint where a stop is asked for.

        Raises StopRequested after that checkpoint.
        """
        self._finished = first_epoch
        self._saved = frozenset({first_epoch} - {0})
        published = self._publish()
        try:
            if first_epoch == 0:
                self._evaluate(0, published)
            for epoch in range(first_epoch, self._config.run.epochs):
                self._parts.stop.check()
                published = self._train_epoch(epoch, published)
                self._finished = epoch + 1
                self._after_epoch(published)
        except StopRequested:
            # A stop is only noticed before an epoch's first update, so the weights are those of the last
            # finished epoch.
            self._save()
            raise

    def _train_epoch(self, epoch: int, published: Published) -> Published:
        """One epoch of Algorithm 1."""
        parts, started = self._parts, time.perf_counter()
        parts.source.prepare(epoch, published.stamp, published.reference)
        tally = EpochTally.start(self._config, published.nbytes)
        parts.observer.phase(Phase.SAMPLING, self._config.trajectories_per_epoch)
        pending = []
        for position, group in enumerate(self._groups(epoch)):
            pending.append(parts.learner.accumulate(position, group.trajectory, group.score))
            tally = tally.with_group(group, published.stamp)
            parts.observer.group_scored(epoch + 1, position, group.score.scorers)
            parts.observer.progress(tally.trajectories)
        parts.observer.phase(Phase.LEARNING, self._config.objective.updates_per_epoch, "updates")
        self._wait(pending, "the learner to take in the epoch's groups")
        reports = self._updates()
        parts.observer.phase(Phase.PUBLISHING, 0)
        renewed = self._publish()
        rewards = parts.rollouts.reward_reports()
        metrics = tally.metrics(reports, rewards, parts.faults.since_last(), time.perf_counter() - started)
        parts.observer.epoch_done(epoch + 1, metrics)
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
        writer = TrajectoryWriter(self._config.run_folder / "trajectories")
        writer.write_epoch(epoch, (ScoredGroup(ray.get(group.trajectory), group.score) for group in kept))

    def _updates(self) -> list[list[UpdateReport]]:
        """K updates: the first on the gradient that has been accumulated, the others on the same groups
        anew."""
        learner = self._parts.learner
        reports = [self._wait(learner.finish_update(), "the learner's update 1")]
        for update in range(2, self._config.objective.updates_per_epoch + 1):
            reports.append(self._wait(learner.repeat_update(), f"the learner's update {update}"))
            self._parts.observer.progress(update)
        self._wait(learner.end_epoch(), "the learner to end the epoch")
        return reports

    def _publish(self) -> Published:
        blobs = self._parts.learner.publish()
        blob: WeightBlob = self._wait(blobs, "the learner to publish its weights")[0]
        return Published(stamp=blob.stamp, reference=blobs[0], nbytes=int(blob.data.nbytes))

    def _after_epoch(self, published: Published) -> None:
        """Save and evaluate after the epochs that the configuration names, and always after the last.

        What is evaluated as one of the best is saved too.
        """
        finished = self._finished
        last = finished == self._config.run.epochs
        self._parts.keeper.check()
        if last or finished % self._config.checkpoint.every_epochs == 0:
            self._save()
        if last or finished % self._config.evaluation.every_epochs == 0:
            evaluation = self._evaluate(finished, published)
            if self._parts.keeper.after_evaluation(evaluation):
                self._save()

    def _evaluate(self, finished: int, published: Published) -> Evaluation:
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
            finished,
            published.stamp,
            published.reference,
            parts.observer.group_scored,
        )
        rewards = parts.rollouts.reward_reports()
        parts.observer.evaluated(evaluation, rewards, time.perf_counter() - started)
        return evaluation

    def _save(self) -> None:
        """Have the checkpoint after the epochs finished so far written, unless it is there."""
        finished = self._finished
        if finished in self._saved:
            return
        self._parts.observer.phase(Phase.CHECKPOINTING, 0)
        files = self._wait([self._parts.learner.export_state()], "the learner's state for a checkpoint")[0]
        state = RunState(self._run_id, finished, self._parts.source.cursor(finished), self._tracker_run)
        self._parts.keeper.save(state, self._config_yaml, files)
        self._saved = frozenset({finished})

    def _wait(self, references: list[ray.ObjectRef], what: str) -> list:
        return self._parts.rollouts.wait(references, what, self._config.learner.timeout_s)
