"""Live metrics on their way to Prometheus, through Ray; works in any process that Ray has started or joined.

Ray's exporter forgets a gauge as soon as it has been read, so a process shows its gauges again and again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge, Histogram

from common.cluster.live_metrics import LiveMetric
from common.cluster.metrics import MetricKind

SHOWN_EVERY_S = 5.0
"""Half of the time after which Ray's processes report their metrics."""

Record = Callable[[float, dict[str, str]], None]
Series = tuple[LiveMetric, tuple[str, ...]]
"""A metric and the values of its labels."""


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
    """Records metrics; from any thread. labels: what all series of this process have in common, by name."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._gauges: dict[Series, float] = {}

    @staticmethod
    def start(labels: Mapping[str, str], counters: Iterable[LiveMetric]) -> Instruments:
        """For as long as the process lives: counters begin at 0, gauges are kept shown."""
        instruments = Instruments(labels)
        for counter in counters:
            instruments.record(counter, 0)
        keep_shown(instruments)
        return instruments

    def record(self, metric: LiveMetric, value: float, **labels: str) -> None:
        """A gauge takes the value, a counter grows by it (0 makes its series begin), a histogram counts it.

        labels: those that the process does not have in common. Raises ValueError where one is missing.
        """
        known = self._labels | labels
        missing = [label for label in metric.labels if label not in known]
        if missing:
            raise ValueError(f"{metric.name} needs a value for its labels {missing}")
        series = metric, tuple(known[label] for label in metric.labels)
        with self._lock:
            if metric.kind is MetricKind.GAUGE:
                self._gauges[series] = float(value)
            self._send(series, float(value))

    def show_again(self) -> None:
        """Tell Ray the last value of every gauge once more."""
        with self._lock:
            for series, value in self._gauges.items():
                self._send(series, value)

    def _send(self, series: Series, value: float) -> None:
        metric, values = series
        if metric.name not in self._records:
            self._records[metric.name] = INSTRUMENTS[metric.kind](metric)
        self._records[metric.name](value, dict(zip(metric.labels, values, strict=True)))


def keep_shown(instruments: Instruments) -> threading.Event:
    """Show the gauges again every few seconds, in a thread of its own, until the event is set."""
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(SHOWN_EVERY_S):
            instruments.show_again()

    threading.Thread(target=show, name="shows gauges", daemon=True).start()
    return ended


@contextmanager
def shown(instruments: Instruments) -> Iterator[Instruments]:
    """The instruments, their gauges kept shown meanwhile."""
    ended = keep_shown(instruments)
    try:
        yield instruments
    finally:
        ended.set()
