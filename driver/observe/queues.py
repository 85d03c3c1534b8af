"""How much waits where, told to Prometheus about once a second while an epoch is under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments

TOLD_EVERY_S = 1.0


@dataclass(frozen=True)
class InFlight:
    """Groups in each place, see live_metrics.QUEUE_GROUPS. asked: by reward, those not answered yet.

    scored_images: pictures scored since the start.
    """

    actors_waiting: int
    actors: int
    reward_waiting: int
    rewards: int
    scored: int
    asked: Mapping[str, int]
    scored_images: int


Watch = Callable[[Callable[[], InFlight]], None]
"""Called at every turn of the loop with what counts groups; counting costs something, so not every time."""


def unwatched(count: Callable[[], InFlight]) -> None:
    """The watch of nobody."""


class QueueGauges:
    """A Watch that tells Prometheus. learner_waiting: groups handed over and not yet taken in."""

    def __init__(
        self,
        instruments: Instruments,
        learner_waiting: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._instruments = instruments
        self._learner_waiting = learner_waiting
        self._clock = clock
        self._next_at = 0.0
        self._scored_images = 0

    def __call__(self, count: Callable[[], InFlight]) -> None:
        """Count and tell, unless that was done within the last second."""
        if self._clock() < self._next_at:
            return
        self._next_at = self._clock() + TOLD_EVERY_S
        found = count()
        queues = {
            "actors_waiting": found.actors_waiting,
            "actors": found.actors,
            "reward_waiting": found.reward_waiting,
            "rewards": found.rewards,
            "scored": found.scored,
            "learner": self._learner_waiting(),
        }
        for queue, groups in queues.items():
            self._instruments.record(live.QUEUE_GROUPS, groups, queue=queue)
        for reward, groups in found.asked.items():
            self._instruments.record(live.ASKED_GROUPS, groups, reward=reward)
        self._instruments.record(live.SCORED_IMAGES, found.scored_images - self._scored_images)
        self._scored_images = found.scored_images
