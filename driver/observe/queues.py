"""How much waits where, told to Prometheus about once a second while an epoch is under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments


@dataclass(frozen=True)
class InFlight:
    """Groups in each place, see live_metrics.QUEUE_GROUPS. asked: by reward, those not answered yet.

    scored_images: pictures scored since the start.
    """

    actors_waiting: int
    actors: int
    rewards: int
    scored: int
    asked: Mapping[str, int]
    scored_images: int


class QueueGauges:
    """Tells Prometheus how much is where. learner_waiting: groups handed over and not yet taken in."""

    def __init__(self, instruments: Instruments, learner_waiting: Callable[[], int]) -> None:
        self._instruments = instruments
        self._learner_waiting = learner_waiting
        self._scored_images = 0

    def __call__(self, found: InFlight) -> None:
        """Tell what was counted now."""
        queues = {
            "actors_waiting": found.actors_waiting,
            "actors": found.actors,
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
