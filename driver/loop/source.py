"""Where an epoch's scored groups come from: sampled now, or recorded before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Protocol

import ray

from common.config.schema import Config
from common.trajectory import GroupScore, PolicyStamp, ScoredGroup
from driver.loop.published import Published
from driver.loop.rollouts import Batch, Rollouts, ScoredReference
from driver.loop.tasks import training_batch
from driver.run.prompts import PromptStream
from driver.run.recordings import Recording


@dataclass(frozen=True)
class Group:
    """A group for the learner. actor_busy_s: seconds an actor took; nbytes: bytes put in the object store.

    renew: makes the same trajectories once more, bit for bit, and waits for them.
    """

    trajectory: ray.ObjectRef
    score: GroupScore
    stamp: PolicyStamp
    actor_busy_s: float
    nbytes: int
    renew: Callable[[], ray.ObjectRef]

    def again(self) -> Group:
        """The same group, where its trajectories were lost with the node that held them."""
        return replace(self, trajectory=self.renew())


class Source(Protocol):
    """One of the two."""

    def prepare(self, epoch: int, weights: Published) -> None:
        """Before epoch `epoch` is learned, with the weights published last."""
        ...

    def forget(self) -> None:
        """Give up what has begun: epochs come again."""
        ...

    def groups(self, epoch: int) -> Iterator[Group]:
        """The epoch's groups in prompt order."""
        ...

    def cursor(self, epochs: int) -> int:
        """Position in the prompt stream after so many epochs."""
        ...


def lost_samples(config: Config, finished: int) -> list[str]:
    """Which epochs' samples are lost where a run goes on after so many finished epochs, in words.

    None before the first: what was sampled ahead then had the same weights.
    """
    last = min(finished + config.data.max_staleness, config.run.epochs)
    if config.data.mode == "offline" or not finished or last == finished:
        return []
    which = f"epoch {last}" if last == finished + 1 else f"epochs {finished + 1} to {last}"
    return [
        f"What was sampled ahead for {which} is lost, and is sampled again with the weights after epoch "
        f"{finished}."
    ]


class OnlineSource:
    """Sampled by the actors. Keeps max_staleness epochs in flight ahead of the one that is learned."""

    def __init__(self, config: Config, stream: PromptStream, rollouts: Rollouts) -> None:
        self._config = config
        self._stream = stream
        self._rollouts = rollouts
        self._in_flight: dict[int, Batch] = {}

    def prepare(self, epoch: int, weights: Published) -> None:
        """Begin this epoch, and those that may run ahead of it, if they have not begun."""
        last = min(epoch + self._config.data.max_staleness, self._config.run.epochs - 1)
        for ahead in range(epoch, last + 1):
            if ahead not in self._in_flight:
                batch = training_batch(self._config, self._stream, ahead, self.cursor(ahead), weights.stamp)
                self._in_flight[ahead] = batch
                self._rollouts.begin(batch, weights)

    def forget(self) -> None:
        """See Source."""
        self._in_flight.clear()
        self._rollouts.forget()

    def groups(self, epoch: int) -> Iterator[Group]:
        """See Source."""
        for group in self._rollouts.collect(self._in_flight.pop(epoch)):
            yield Group(
                trajectory=group.trajectory,
                score=group.score,
                stamp=group.task.stamp,
                actor_busy_s=group.report.busy_s,
                nbytes=group.report.nbytes,
                renew=partial(self._sample_again, group),
            )

    def _sample_again(self, group: ScoredReference) -> ray.ObjectRef:
        return self._rollouts.again(group).trajectory

    def cursor(self, epochs: int) -> int:
        """N prompts an epoch."""
        return epochs * self._config.sampling.prompts_per_epoch


class OfflineSource:
    """Replayed from a recording, epoch after epoch, from its beginning again when it is through."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def prepare(self, epoch: int, weights: Published) -> None:
        """Nothing to begin."""

    def forget(self) -> None:
        """Nothing has begun."""

    def groups(self, epoch: int) -> Iterator[Group]:
        """See Source."""
        for position, scored in enumerate(self._read(epoch)):
            trajectory = scored.trajectory
            yield Group(
                trajectory=ray.put(trajectory),
                score=scored.score,
                stamp=trajectory.stamp,
                actor_busy_s=0.0,
                nbytes=trajectory.nbytes,
                renew=partial(self._read_again, epoch, position),
            )

    def _read(self, epoch: int) -> Iterator[ScoredGroup]:
        epochs = self._recording.epochs
        return self._recording.read_epoch(epochs[epoch % len(epochs)])

    def _read_again(self, epoch: int, position: int) -> ray.ObjectRef:
        return ray.put(next(islice(self._read(epoch), position, None)).trajectory)

    def cursor(self, epochs: int) -> int:
        """A recording draws no prompts."""
        return 0
