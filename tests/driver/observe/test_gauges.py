"""Names of the Ray metrics; that they reach Prometheus is tested in tests/integration/test_gauges.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from common.cluster.instruments import Instruments
from common.cluster.live_metrics import LIVE_METRICS, LiveMetric
from common.cluster.metrics import METRICS
from driver.observe.gauges import InFlight, QueueGauges, RayGauges, prometheus_name


def test_an_undefined_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="reward/mean"):
        RayGauges(Instruments({"run": "run"})).publish({"reward/meen": 1.0})


def test_every_metric_is_on_the_grafana_board() -> None:
    board = Path("deploy/grafana/prdp.json").read_text()
    shown = set(re.findall(r"ray_(prdp_\w+?)(?:_bucket)?\b", board))
    assert {metric.name for metric in LIVE_METRICS} | {prometheus_name(metric) for metric in METRICS} == shown


class Recorder:
    """Keeps what would go to Ray."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.total = 0.0

    def record(self, metric: LiveMetric, value: float, **labels: str) -> None:
        self.values[(metric.name, *labels.values())] = value
        self.total += value if metric.name == "prdp_scored_images_total" else 0.0


def test_each_place_is_counted_and_scored_images_are_added_up() -> None:
    recorder: Any = Recorder()
    gauges = QueueGauges(recorder, lambda: 6)
    for images in (8, 12, 20):
        gauges(InFlight(1, 2, 4, 5, {"jpeg": 4, "clip": 1}, images))
    assert recorder.total == 20
    places = ("actors_waiting", "actors", "rewards", "scored", "learner")
    assert [recorder.values["prdp_queue_groups", place] for place in places] == [1, 2, 4, 5, 6]
    assert recorder.values["prdp_reward_asked_groups", "jpeg"] == 4
