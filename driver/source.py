"""Where an epoch's scored groups come from: sampled now, or recorded before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import ray

from common.config.schema import Config
from common.prompts import PromptStream
from common.recording import Recording
from common.trajectory import GroupScore, PolicyStamp
from driver.rollouts import Batch, Rollouts
from driver.tasks import training_batch


@dataclass(frozen=True)
class Group:
    """A group for the learner. actor_busy_s: seconds an actor took; nbytes: bytes put in the object store."""

    trajectory: ray.ObjectRef
    score: GroupScore
    stamp: PolicyStamp
    actor_busy_s: float
    nbytes: int


class Source(Protocol):
    """One of the two."""

    def prepare(self, epoch: int, stamp: PolicyStamp, weights: ray.ObjectRef) -> None:
        """Before epoch `epoch` is learned, with the weights published last."""
        ...

    def groups(self, epoch: int) -> Iterator[Group]:
        """The epoch's groups in prompt order."""
        ...

    def cursor(self, epochs: int) -> int:
        """Position in the prompt stream after so many epochs."""
        ...


class OnlineSource:
    """Sampled by the actors. Keeps max_staleness epochs in flight ahead of the one that is learned."""

    def __init__(self, config: Config, stream: PromptStream, rollouts: Rollouts) -> None:
        self._config = config
        self._stream = stream
        self._rollouts = rollouts
        self._in_flight: dict[int, Batch] = {}

    def prepare(self, epoch: int, stamp: PolicyStamp, weights: ray.ObjectRef) -> None:
        """Begin this epoch, and those that may run ahead of it, if they have not begun."""
        last = min(epoch + self._config.data.max_staleness, self._config.run.epochs - 1)
        for ahead in range(epoch, last + 1):
            if ahead not in self._in_flight:
                batch = training_batch(self._config, self._stream, ahead, self.cursor(ahead), stamp)
                self._in_flight[ahead] = batch
                self._rollouts.begin(batch, weights)

    def groups(self, epoch: int) -> Iterator[Group]:
        """See Source."""
        for group in self._rollouts.collect(self._in_flight.pop(epoch)):
            yield Group(
                trajectory=group.trajectory,
                score=group.score,
                stamp=group.task.stamp,
                actor_busy_s=group.report.busy_s,
                nbytes=group.report.nbytes,
            )

    def cursor(self, epochs: int) -> int:
        """N prompts an epoch."""
        return epochs * self._config.sampling.prompts_per_epoch


class OfflineSource:
    """Replayed from a recording, epoch after epoch, from its beginning again when it is through."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def prepare(self, epoch: int, stamp: PolicyStamp, weights: ray.ObjectRef) -> None:
        """Nothing to begin."""

    def groups(self, epoch: int) -> Iterator[Group]:
        """See Source."""
        epochs = self._recording.epochs
        for scored in self._recording.read_epoch(epochs[epoch % len(epochs)]):
            trajectory = scored.trajectory
            yield Group(ray.put(trajectory), scored.score, trajectory.stamp, 0.0, trajectory.nbytes)

    def cursor(self, epochs: int) -> int:
        """A recording draws no prompts."""
        return 0
