"""Names of the Ray metrics; that they reach Prometheus is tested in tests/integration/test_gauges.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from common.cluster.instruments import Instruments
from common.cluster.live_metrics import LIVE_METRICS, LiveMetric
from common.cluster.metrics import METRICS, MetricKind, definition_of
from driver.observe.gauges import InFlight, QueueGauges, RayGauges, prometheus_name


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("reward/mean", "prdp_reward_mean"),
        ("reward/aesthetic/mean", "prdp_reward_part_mean"),
        ("eval/seen/reward", "prdp_eval_score"),
        ("time/epoch_s", "prdp_time_epoch_seconds"),
        ("time/learner_busy_s", "prdp_time_busy_seconds"),
        ("throughput/images_per_s", "prdp_throughput_images_per_second"),
        ("transport/bytes_moved", "prdp_transport_moved_bytes_total"),
        ("faults/dropped_groups", "prdp_faults_dropped_groups_total"),
        ("optimizer/gradient_norm_step_3", "prdp_optimizer_gradient_norm_step"),
        ("objective/clip_share", "prdp_objective"),
    ],
)
def test_names_follow_prometheus(metric: str, expected: str) -> None:
    assert prometheus_name(definition_of(metric)) == expected


def test_names_are_valid_distinct_and_mark_counters() -> None:
    names = [prometheus_name(metric) for metric in METRICS]
    assert len(set(names)) == len(METRICS)
    assert all(re.fullmatch(r"prdp_[a-z0-9]+(_[a-z0-9]+)*", name) for name in names)
    for metric, name in zip(METRICS, names, strict=True):
        assert name.endswith("_total") == (metric.kind is MetricKind.COUNTER)


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
