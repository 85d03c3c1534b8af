"""The epoch's metrics and the pipeline's queues as Ray metrics, so that they reach Prometheus.

Ray puts `ray_` before each name.

`policy/version` becomes `prdp_policy_version`, `time/epoch_s` `prdp_time_epoch_seconds`, and what a
placeholder stands for becomes a label: `eval/unseen/gold` is `prdp_eval_score{set="unseen", score="gold"}`.
Every series has the label `run`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments
from common.cluster.live_metrics import LiveMetric
from common.cluster.metrics import METRICS, MetricDefinition, MetricKind, definition_of

UNIT_SUFFIXES: dict[str, tuple[str, str]] = {
    "s": ("s", "seconds"),
    "images/s": ("images_per_s", "images_per_second"),
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


def live_metric(definition: MetricDefinition) -> LiveMetric:
    """The metric as Prometheus knows it."""
    return LiveMetric(
        prometheus_name(definition),
        definition.unit,
        definition.description,
        definition.kind,
        ("run", *definition.placeholders),
    )


class RayGauges:
    """Publishes the metrics of epochs to Ray. Owned by one thread. instruments: with the label `run`."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    @staticmethod
    def start(instruments: Instruments) -> RayGauges:
        """With all counters at 0."""
        for definition in METRICS:
            if definition.kind is MetricKind.COUNTER and not definition.placeholders:
                instruments.record(live_metric(definition), 0)
        return RayGauges(instruments)

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Publish an epoch's metrics: gauges take the value, counters grow by it; NaN and inf are skipped.

        Raises ValueError where a name is not in the table of metrics.
        """
        for name, value in metrics.items():
            definition = definition_of(name)
            if math.isfinite(value):
                self._instruments.record(live_metric(definition), value, **definition.values_in(name))


@dataclass(frozen=True)
class InFlight:
    """Groups in each place, see live_metrics.QUEUE_GROUPS. asked: by reward, those not answered yet.

    scored_images: images scored since the start.
    """

    actors_waiting: int
    actors: int
    rewards: int
    scored: int
    asked: Mapping[str, int]
    scored_images: int


class QueueGauges:
    """Tells Prometheus how much is where. learner_waiting: groups handed over and not yet taken in."""

    def __init__(self, instruments: Instruments, learner_waiting: Callable[[], int]) -> None:
        self._instruments = instruments
        self._learner_waiting = learner_waiting
        self._scored_images = 0

    def __call__(self, found: InFlight) -> None:
        """Tell what was counted now."""
        queues = {
            "actors_waiting": found.actors_waiting,
            "actors": found.actors,
            "rewards": found.rewards,
            "scored": found.scored,
            "learner": self._learner_waiting(),
        }
        for queue, groups in queues.items():
            self._instruments.record(live.QUEUE_GROUPS, groups, queue=queue)
        for reward, groups in found.asked.items():
            self._instruments.record(live.ASKED_GROUPS, groups, reward=reward)
        self._instruments.record(live.SCORED_IMAGES, found.scored_images - self._scored_images)
        self._scored_images = found.scored_images
