"""Where an epoch's scored groups come from: sampled now, or recorded before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import ray

from actors.actor import SampleReport
from common.config.schema import Config
from common.stopwatch import Busy
from common.trajectory import PromptTask, ScoredGroup
from driver.loop.ranks import Published
from driver.loop.rollouts import BegunRollouts, Group, Rollouts
from driver.run.prompts import PromptStream, training_tasks
from driver.run.recordings import Recording


def lost_samples(config: Config, finished: int) -> str | None:
    """Which epochs' samples are lost where a run goes on after so many finished epochs, in words.

    None before the first: what was sampled ahead then had the same weights.
    """
    last = min(finished + config.data.max_staleness, config.run.epochs)
    if config.data.mode == "offline" or not finished or last == finished:
        return None
    which = f"epoch {last}" if last == finished + 1 else f"epochs {finished + 1} to {last}"
    return (
        f"What was sampled ahead for {which} is lost, and is sampled again with the weights after epoch "
        f"{finished}."
    )


class OnlineSource:
    """Sampled by the actors. Keeps max_staleness epochs in flight ahead of the one that is learned.

    with_reference: have the actors give log ratios to the reference; with_steps: whole trajectories, and not
    x_0 alone.
    """

    def __init__(
        self,
        config: Config,
        stream: PromptStream,
        rollouts: Rollouts,
        with_reference: bool,
        with_steps: bool = True,
    ) -> None:
        self._config = config
        self._stream = stream
        self._rollouts = rollouts
        self._with_reference = with_reference
        self._with_steps = with_steps
        self._in_flight: dict[int, BegunRollouts] = {}

    def prepare(self, epoch: int, weights: Published) -> None:
        """Begin this epoch, and those that may run ahead of it, if they have not begun."""
        last = min(epoch + self._config.data.max_staleness, self._config.run.epochs - 1)
        for ahead in range(epoch, last + 1):
            if ahead not in self._in_flight:
                wanted = self._with_reference, self._with_steps
                tasks = training_tasks(self._config, self._stream, ahead, weights.stamp, *wanted)
                self._in_flight[ahead] = self._rollouts.begin(tasks, weights.reference, with_gold=False)

    def forget(self) -> None:
        """Forget what has begun, which Rollouts.forget gives up: epochs come again."""
        self._in_flight.clear()

    def groups(self, epoch: int) -> AsyncIterator[Group]:
        """The epoch's groups in prompt order, as soon as they are scored."""
        return self._rollouts.collect(self._in_flight.pop(epoch))


class OfflineSource:
    """Replayed from a recording, epoch after epoch, from its beginning again when it is through."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def prepare(self, epoch: int, weights: Published) -> None:
        """Nothing to begin."""

    def forget(self) -> None:
        """Nothing has begun."""

    async def groups(self, epoch: int) -> AsyncIterator[Group]:
        """The epoch's groups in the order of recording."""
        epochs = self._recording.epochs
        scored = self._recording.read_epoch(epochs[epoch % len(epochs)])
        while (group := await asyncio.to_thread(next, scored, None)) is not None:
            yield _recorded(group)


def _recorded(group: ScoredGroup) -> Group:
    """Its trajectories are held by the driver's node, so they are not lost before the run is."""
    own = group.trajectory
    task = PromptTask(own.prompt, own.num_images, own.noise, own.stamp, with_reference=False)
    report = SampleReport(own.stamp, own.num_images, "recorded", Busy(0.0, 0.0), own.nbytes)
    return Group(task, None, ray.put(own), None, group.score, report)
