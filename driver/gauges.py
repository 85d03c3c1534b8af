"""The epoch's metrics as Ray metrics, so that they reach Prometheus; Ray puts `ray_` before each name.

`policy/version` becomes `prdp_policy_version`, `time/epoch_s` `prdp_time_epoch_seconds`, and what a
placeholder stands for becomes a label: `eval/unseen/gold` is `prdp_eval_score{set="unseen", score="gold"}`.
Every series has the label `run`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from ray.util.metrics import Counter, Gauge

from common.metrics import MetricDefinition, MetricKind, definition_of

Labels = dict[str, str]
Publish = Callable[[float, Labels], None]

UNIT_SUFFIXES: dict[str, tuple[str, str]] = {
    "s": ("s", "seconds"),
    "images/s": ("images_per_s", "images_per_second"),
    "trajectories/s": ("trajectories_per_s", "trajectories_per_second"),
    "bytes": ("bytes_moved", "moved_bytes"),
}
"""By unit: how a metric's name ends, and how Prometheus spells that end."""


READABLE_PATHS: dict[str, str] = {
    "reward/<part>/mean": "reward/part/mean",
    "eval/<set>/<score>": "eval/score",
    "eval/width95/<set>/<score>": "eval/score/width95",
}
"""Metrics whose name without its placeholders would be another metric's, or would say too little."""


def prometheus_name(definition: MetricDefinition) -> str:
    """Name in Prometheus' style: base units spelt out, `_total` on counters, placeholders left out."""
    path = READABLE_PATHS.get(definition.name, definition.name)
    words = re.sub(r"<\w+>", "", path).replace("/", "_")
    name = "prdp_" + re.sub(r"_+", "_", words).strip("_")
    ending, spelt = UNIT_SUFFIXES.get(definition.unit, ("", ""))
    name = name.removesuffix(ending) + spelt
    return name + "_total" if definition.kind is MetricKind.COUNTER else name


def _gauge(name: str, definition: MetricDefinition, labels: tuple[str, ...]) -> Publish:
    gauge = Gauge(name, definition.description, labels)
    return gauge.set


def _counter(name: str, definition: MetricDefinition, labels: tuple[str, ...]) -> Publish:
    counter = Counter(name, definition.description, labels)

    def add(amount: float, values: Labels) -> None:
        # Ray refuses to add 0.
        if amount > 0:
            counter.inc(amount, values)

    return add


INSTRUMENTS: dict[MetricKind, Callable[[str, MetricDefinition, tuple[str, ...]], Publish]] = {
    MetricKind.GAUGE: _gauge,
    MetricKind.COUNTER: _counter,
}


class RayGauges:
    """Publishes metrics to Ray; works in any process that has called ray.init. Owned by one thread."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._instruments: dict[str, Publish] = {}

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Publish an epoch's metrics: gauges take the value, counters grow by it; NaN and inf are skipped.

        Raises ValueError where a name is not in the table of metrics.
        """
        for name, value in metrics.items():
            definition = definition_of(name)
            if math.isfinite(value):
                self._instrument(definition)(
                    float(value), {"run": self._run_name} | definition.values_in(name)
                )

    def _instrument(self, definition: MetricDefinition) -> Publish:
        name = prometheus_name(definition)
        if name not in self._instruments:
            labels = ("run", *definition.placeholders)
            self._instruments[name] = INSTRUMENTS[definition.kind](name, definition, labels)
        return self._instruments[name]
