"""Queues are counted about once a second, and scored pictures are added up."""

from __future__ import annotations

from typing import Any

from common.cluster.live_metrics import LiveMetric
from driver.observe.queues import TOLD_EVERY_S, InFlight, QueueGauges


class Recorder:
    """Keeps what would go to Ray."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.total = 0.0

    def record(self, metric: LiveMetric, value: float, **labels: str) -> None:
        self.values[(metric.name, *labels.values())] = value
        self.total += value if metric.name == "prdp_scored_images_total" else 0.0


def test_each_place_is_told_at_most_once_a_second() -> None:
    recorder: Any = Recorder()
    moments = iter([0.0, 0.0, TOLD_EVERY_S / 2, TOLD_EVERY_S, TOLD_EVERY_S])
    gauges = QueueGauges(recorder, lambda: 6, lambda: next(moments))
    counted = []

    def count(images: int) -> InFlight:
        counted.append(images)
        return InFlight(1, 2, 3, 4, 5, {"jpeg": 4, "clip": 1}, images)

    for images in (8, 12, 20):
        gauges(lambda images=images: count(images))
    assert counted == [8, 20]
    assert recorder.total == 20
    places = ("actors_waiting", "actors", "reward_waiting", "rewards", "scored", "learner")
    assert [recorder.values["prdp_queue_groups", place] for place in places] == [1, 2, 3, 4, 5, 6]
    assert recorder.values["prdp_reward_asked_groups", "jpeg"] == 4
