"""The monitoring board: rows of panels with their Prometheus queries, made from the tables of metrics. Pure.

Every metric of metrics.py and live_metrics.py in common/cluster has a panel, so a new one appears by itself.
The first row answers an operator's questions by several metrics together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.cluster import live_metrics as live
from common.cluster.live_metrics import LIVE_METRICS, LiveMetric
from common.cluster.metrics import METRICS, MetricKind
from driver.observe.gauges import live_metric

RUN = "$run"
WINDOW = "$__rate_interval"
"""What Grafana puts in: the runs chosen at the top, and the time that a rate is taken over."""

SINCE = "2m"
"""How far back a gauge's last value is looked for: Ray's exporter leaves gaps between its values."""


@dataclass(frozen=True)
class Query:
    """expr: PromQL. legend: how a series is called, with {{label}}."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture over time. unit: as in the tables of metrics."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


def selector(metric: LiveMetric) -> str:
    """The metric's series of the chosen runs; of all runs where it does not say whose it is."""
    return f'ray_{metric.name}{{run=~"{RUN}"}}' if "run" in metric.labels else f"ray_{metric.name}"


def _legend(labels: tuple[str, ...]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _by(labels: tuple[str, ...]) -> str:
    return f"by ({', '.join(labels)})"


def last(metric: LiveMetric) -> str:
    """Its last value, by its own labels."""
    return f"max {_by(metric.labels)} (last_over_time({selector(metric)}[{SINCE}]))"


def rate(metric: LiveMetric, *labels: str) -> str:
    """Growth a second, by the labels given."""
    return f"sum {_by(labels)} (rate({selector(metric)}[{WINDOW}]))"


def _gauge_queries(metric: LiveMetric) -> tuple[Query, ...]:
    return (Query(last(metric), _legend(metric.labels)),)


def _counter_queries(metric: LiveMetric) -> tuple[Query, ...]:
    # Growth of what is told once an epoch is no rate; its sum since the start is what a person wants.
    expr = (
        rate(metric, *metric.labels)
        if metric in LIVE_METRICS
        else f"sum {_by(metric.labels)} ({selector(metric)})"
    )
    return (Query(expr, _legend(metric.labels)),)


def _histogram_queries(metric: LiveMetric) -> tuple[Query, ...]:
    labels = tuple(label for label in metric.labels if label != "process")
    series = f"ray_{metric.name}_bucket" + selector(metric).removeprefix(f"ray_{metric.name}")
    buckets = f"sum {_by(('le', *labels))} (rate({series}[{WINDOW}]))"
    return tuple(
        Query(f"histogram_quantile({share}, {buckets})", f"{_legend(labels)} {name}")
        for share, name in ((0.5, "half below"), (0.95, "95 % below"))
    )


QUERIES = {
    MetricKind.GAUGE: _gauge_queries,
    MetricKind.COUNTER: _counter_queries,
    MetricKind.HISTOGRAM: _histogram_queries,
}


def metric_panel(metric: LiveMetric) -> Panel:
    """The panel of one metric."""
    growing = metric.kind is MetricKind.COUNTER and metric in LIVE_METRICS
    words = metric.name.removeprefix("prdp_").removesuffix("_total")
    words = re.sub("_(seconds|bytes)$", "", words) if growing else words
    unit = ("share" if metric.unit == "s" else f"{metric.unit}/s") if growing else metric.unit
    return Panel(
        words.replace("_", " ").capitalize().replace("Gpu", "GPU"),
        unit,
        metric.description,
        QUERIES[metric.kind](metric),
    )


def _idle(busy: LiveMetric, legend: str, group: str, process: str) -> Query:
    """1 - the share of time that the processes of a group worked, each process told by that label."""
    return Query(f"clamp_min(1 - avg {_by((group,))} ({rate(busy, group, process)}), 0)", legend)


def _glance() -> Row:
    epoch = {metric.name: live_metric(metric) for metric in METRICS}
    panels = (
        Panel(
            "Throughput",
            "images/s",
            "Pictures (trajectories) sampled by actors, scored by rewards, and taken in by the learner.",
            (
                Query(rate(live.ACTOR_IMAGES, "run"), "{{run}} sampled"),
                Query(rate(live.SCORED_IMAGES, "run"), "{{run}} scored"),
                Query(rate(live.LEARNER_TRAJECTORIES, "run"), "{{run}} learned"),
            ),
        ),
        Panel(
            "Idle share by role",
            "share",
            "Share of time in which the processes of a role did not work. The role that idles least sets the "
            "pace: that pool is the one to grow. `python -m driver.report.timeline RUN_FOLDER` tells more.",
            (
                _idle(live.ACTOR_BUSY, "{{run}} actors", "run", "process"),
                _idle(live.REWARD_BUSY, "reward {{reward}}", "reward", "WorkerId"),
                _idle(live.LEARNER_BUSY, "{{run}} learner", "run", "process"),
            ),
        ),
        Panel(
            "Where groups are",
            "groups",
            live.QUEUE_GROUPS.description,
            (Query(last(live.QUEUE_GROUPS), "{{queue}}"),),
        ),
        Panel(
            "Reward in training",
            "reward",
            epoch["reward/mean"].description,
            (Query(last(epoch["reward/mean"]), "{{run}}"),),
        ),
        Panel(
            "KL to the reference",
            "nats per trajectory",
            epoch["policy/kl_to_reference"].description,
            (Query(last(epoch["policy/kl_to_reference"]), "{{run}}"),),
        ),
        Panel(
            "Faults since the start",
            "",
            "Everything that went wrong and was mended; none of it should grow steadily.",
            tuple(
                Query(
                    f"sum {_by(('run',))} ({selector(metric)})", f"{{{{run}}}} {name.removeprefix('faults/')}"
                )
                for name, metric in epoch.items()
                if name.startswith("faults/")
            ),
        ),
    )
    return Row("At a glance", panels)


LIVE_ROWS = {
    "Pipeline, live": ("prdp_queue_", "prdp_reward_asked_", "prdp_scored_"),
    "Actors, live": ("prdp_actor_", "prdp_gpu_"),
    "Learner, live": ("prdp_learner_",),
    "Reward service, live": ("prdp_reward_",),
}
EPOCH_ROWS = {
    "Rewards, each epoch": ("reward/", "reward_"),
    "Evaluation": ("eval/",),
    "Objective and optimizer, each epoch": ("objective/", "optimizer/"),
    "Policy, each epoch": ("policy/",),
    "Time and throughput, each epoch": ("time/", "throughput/", "transport/", "actors/"),
    "Alarms and faults": ("alarms/", "faults/"),
    "Shadow versions of rewards": ("shadow/",),
}
OTHERS = "Others"


def _row_of(name: str, rows: dict[str, tuple[str, ...]]) -> str:
    return next((title for title, starts in rows.items() if name.startswith(starts)), OTHERS)


def board() -> tuple[Row, ...]:
    """All rows, from top to bottom."""
    found: dict[str, list[Panel]] = {title: [] for title in (*LIVE_ROWS, *EPOCH_ROWS, OTHERS)}
    for metric in LIVE_METRICS:
        found[_row_of(metric.name, LIVE_ROWS)].append(metric_panel(metric))
    for definition in METRICS:
        found[_row_of(definition.name, EPOCH_ROWS)].append(metric_panel(live_metric(definition)))
    return (_glance(), *(Row(title, tuple(panels)) for title, panels in found.items() if panels))
