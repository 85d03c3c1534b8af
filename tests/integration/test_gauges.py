"""What RayGauges publishes is what Prometheus reads from Ray."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray

from driver.gauges import RayGauges

PATIENCE_S = 60.0


def scrape(port: int) -> dict[str, float]:
    """Our series: `name{our labels}` -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    series = {}
    for name, labels, value in re.findall(r"^ray_(prdp_\w+)\{(.*)\} (\S+)$", text, flags=re.MULTILINE):
        ours = sorted(re.findall(r'\b(?:run|set|score)="[^"]*"', labels))
        series[f"{name}{{{','.join(ours)}}}"] = float(value)
    return series


@pytest.mark.integration
def test_metrics_reach_prometheus() -> None:
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        gauges = RayGauges("demo")
        gauges.publish({"policy/version": 1.0, "faults/dropped_groups": 0.0, "transport/bytes_moved": 100.0})
        gauges.publish({"policy/version": 2.0, "eval/unseen/gold": 0.25, "transport/bytes_moved": 20.0})
        gauges.publish({"policy/version": float("nan")})
        expected = {
            'prdp_policy_version{run="demo"}': 2.0,
            'prdp_eval_score{run="demo",score="gold",set="unseen"}': 0.25,
            'prdp_transport_moved_bytes_total{run="demo"}': 120.0,
        }
        port = ray.nodes()[0]["MetricsExportPort"]
        deadline = time.monotonic() + PATIENCE_S
        seen: dict[str, float] = {}
        while time.monotonic() < deadline and seen != expected:
            time.sleep(1.0)
            seen = scrape(port)
        assert seen == expected
    finally:
        ray.shutdown()
