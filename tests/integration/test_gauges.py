"""What is published is what Prometheus reads from Ray, again and again."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable

import pytest
import ray

from common.cluster.instruments import Instruments, shown
from driver.observe.gauges import RayGauges

PATIENCE_S = 60.0
EXPECTED = {
    'prdp_policy_version{run="demo"}': 2.0,
    'prdp_eval_score{run="demo",score="gold",set="unseen"}': 0.25,
    'prdp_transport_moved_bytes_total{run="demo"}': 120.0,
    'prdp_faults_dropped_groups_total{run="demo"}': 0.0,
}


def scrape(port: int) -> dict[str, float]:
    """Our series: `name{our labels}` -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    series = {}
    for name, labels, value in re.findall(r"^ray_(prdp_\w+)\{(.*)\} (\S+)$", text, flags=re.MULTILINE):
        ours = sorted(re.findall(r'\b(?:run|set|score)="[^"]*"', labels))
        series[f"{name}{{{','.join(ours)}}}"] = float(value)
    return series


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.integration
def test_metrics_reach_prometheus_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    monkeypatch.setattr("common.cluster.instruments.SHOWN_EVERY_S", 1.0)
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        with shown(Instruments({"run": "demo"})) as instruments:
            gauges = RayGauges.start(instruments)
            gauges.publish(
                {"policy/version": 1.0, "faults/dropped_groups": 0.0, "transport/bytes_moved": 100.0}
            )
            gauges.publish({"policy/version": 2.0, "eval/unseen/gold": 0.25, "transport/bytes_moved": 20.0})
            gauges.publish({"policy/version": float("nan")})
            port = ray.nodes()[0]["MetricsExportPort"]
            # Ray forgets a gauge when it was read: without being shown again it is there once.
            for _ in range(3):
                wait_until(lambda: scrape(port).items() >= EXPECTED.items())
    finally:
        ray.shutdown()
