"""Live metrics on their way to Prometheus, through Ray; works in any process that Ray has started or joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from common.live_metrics import LiveMetric
from common.metrics import MetricKind

Labels = Mapping[str, str]
Record = Callable[[float, dict[str, str]], None]


class StartedCounter(Counter):
    """A counter whose series are there before they have grown: Ray's own refuses to add 0."""

    def add(self, amount: float, labels: dict[str, str]) -> None:
        """Grow by amount >= 0."""
        self._record(amount, labels)


def _gauge(metric: LiveMetric) -> Record:
    return Gauge(metric.name, metric.description, metric.labels).set


def _counter(metric: LiveMetric) -> Record:
    return StartedCounter(metric.name, metric.description, metric.labels).add


def _histogram(metric: LiveMetric) -> Record:
    return Histogram(metric.name, metric.description, list(metric.buckets), metric.labels).observe


INSTRUMENTS: dict[MetricKind, Callable[[LiveMetric], Record]] = {
    MetricKind.GAUGE: _gauge,
    MetricKind.COUNTER: _counter,
    MetricKind.HISTOGRAM: _histogram,
}


class Instruments:
    """Records metrics. labels: what all series of this process have in common, by label's name."""

    def __init__(self, labels: Labels) -> None:
        self._labels = dict(labels)
        self._records: dict[str, Record] = {}

    def record(self, metric: LiveMetric, value: float, **labels: str) -> None:
        """A gauge takes the value, a counter grows by it (0 makes its series begin), a histogram counts it.

        labels: those that the process does not have in common. Raises ValueError where one is missing.
        """
        if metric.name not in self._records:
            self._records[metric.name] = INSTRUMENTS[metric.kind](metric)
        known = self._labels | labels
        missing = [label for label in metric.labels if label not in known]
        if missing:
            raise ValueError(f"{metric.name} needs a value for its labels {missing}")
        self._records[metric.name](float(value), {label: known[label] for label in metric.labels})
