"""How much is where is told, and scored images are added up."""

from __future__ import annotations

from typing import Any

from common.cluster.live_metrics import LiveMetric
from driver.observe.queues import InFlight, QueueGauges


class Recorder:
    """Keeps what would go to Ray."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.total = 0.0

    def record(self, metric: LiveMetric, value: float, **labels: str) -> None:
        self.values[(metric.name, *labels.values())] = value
        self.total += value if metric.name == "prdp_scored_images_total" else 0.0


def test_each_place_is_told_and_scored_images_are_added_up() -> None:
    recorder: Any = Recorder()
    gauges = QueueGauges(recorder, lambda: 6)
    for images in (8, 12, 20):
        gauges(InFlight(1, 2, 4, 5, {"jpeg": 4, "clip": 1}, images))
    assert recorder.total == 20
    places = ("actors_waiting", "actors", "rewards", "scored", "learner")
    assert [recorder.values["prdp_queue_groups", place] for place in places] == [1, 2, 4, 5, 6]
    assert recorder.values["prdp_reward_asked_groups", "jpeg"] == 4
