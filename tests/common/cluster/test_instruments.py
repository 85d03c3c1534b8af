"""Live metrics: names after Prometheus' conventions, and what a record needs. What Ray does with them is
tested in tests/integration/test_gauges.py."""

from __future__ import annotations

import re

import pytest

from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments
from common.cluster.live_metrics import LIVE_METRICS
from common.cluster.metrics import METRICS, MetricKind
from driver.observe.gauges import live_metric

EVERY = [*LIVE_METRICS, *map(live_metric, METRICS)]
UNITS = {"s": "_seconds", "bytes": "_bytes"}


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: metric.name)
def test_names_follow_prometheus(metric: live.LiveMetric) -> None:
    assert re.fullmatch(r"prdp_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
    assert metric.name.removesuffix("_total").endswith(UNITS.get(metric.unit, ""))
    assert bool(metric.buckets) == (metric.kind is MetricKind.HISTOGRAM)
    assert metric.description.endswith(".")
    assert not {"le", "quantile", "instance", "job"} & set(metric.labels)


def test_no_two_metrics_share_a_family() -> None:
    # OpenMetrics names a counter's family without `_total`, and a histogram's series after their family.
    families = [metric.name.removesuffix("_total") for metric in EVERY]
    assert len(set(families)) == len(families)
    assert not [name for name in families if name.endswith(("_sum", "_count", "_bucket"))]


def test_a_record_without_its_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prdp_queue_groups needs .*'queue'"):
        Instruments({"run": "x"}).record(live.QUEUE_GROUPS, 1.0)
