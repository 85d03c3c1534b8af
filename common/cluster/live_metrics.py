"""The table of live metrics: what processes tell Prometheus while they work, inside an epoch.

Names follow Prometheus' conventions: base units spelt out (`_seconds`, `_bytes`), `_total` on counters. The
numbers of whole epochs are in common/cluster/metrics.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.cluster.metrics import MetricKind

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
GROUPS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True)
class LiveMetric:
    """One metric as Prometheus knows it (Ray puts `ray_` before the name).

    labels: of every series, besides those of Ray's own. buckets: upper bounds; of histograms only.
    """

    name: str
    unit: str
    description: str
    kind: MetricKind
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


def _gauge(name: str, unit: str, description: str, *labels: str) -> LiveMetric:
    return LiveMetric(name, unit, description, MetricKind.GAUGE, labels)


def _counter(name: str, unit: str, description: str, *labels: str) -> LiveMetric:
    return LiveMetric(name, unit, description, MetricKind.COUNTER, labels)


def _histogram(
    name: str, unit: str, description: str, buckets: tuple[float, ...], *labels: str
) -> LiveMetric:
    return LiveMetric(name, unit, description, MetricKind.HISTOGRAM, labels, buckets)


QUEUE_GROUPS = _gauge(
    "prdp_queue_groups",
    "groups",
    "Prompts in each place of the pipeline: actors_waiting (no actor has room), actors (at an actor, those "
    "next in its own queue included), rewards (at the rewards, or waiting for room there), "
    "scored (waits for an earlier prompt's score), learner (handed over, not taken in yet).",
    "run",
    "queue",
)
ASKED_GROUPS = _gauge(
    "prdp_reward_asked_groups", "groups", "Groups that one reward has not answered yet.", "run", "reward"
)
SCORED_IMAGES = _counter("prdp_scored_images_total", "images", "Images that all rewards scored.", "run")

_WORKER = ("run", "role", "process")
WORK_TRAJECTORIES = _counter(
    "prdp_trajectories_total", "trajectories", "Trajectories that actors sampled and ranks learned.", *_WORKER
)
WORK_BUSY = _counter(
    "prdp_busy_seconds_total", "s", "Time that actors and ranks worked; a rank publishes too.", *_WORKER
)
WORK_TASK = _histogram(
    "prdp_task_seconds",
    "s",
    "Time that an actor took for a prompt, or a rank for a wave of prompts.",
    SECONDS,
    *_WORKER,
)
WORK_BYTES = _counter(
    "prdp_work_bytes_total", "bytes", "Trajectories and images that actors put in the object store.", *_WORKER
)
UPDATES = _counter("prdp_updates_total", "updates", "Optimizer updates that a rank has ended.", *_WORKER)
WORK_COUNTERS = (WORK_TRAJECTORIES, WORK_BUSY, WORK_BYTES, UPDATES)
GPU_MEMORY = _gauge(
    "prdp_gpu_memory_bytes",
    "bytes",
    "GPU memory that torch holds in this process, after its last piece of work; 0 on a CPU.",
    *_WORKER,
)

REWARD_QUEUE = _gauge("prdp_reward_queue_groups", "groups", "Groups that wait for the scorer.", "reward")
REWARD_BATCH = _histogram("prdp_reward_batch_groups", "groups", "Groups scored together.", GROUPS, "reward")
REWARD_WORK = _histogram(
    "prdp_reward_batch_seconds", "s", "Seconds that the scorer took for a batch.", SECONDS, "reward"
)
REWARD_BUSY = _counter(
    "prdp_reward_scorer_seconds_total", "s", "Time that the scorer worked, batches together.", "reward"
)
REWARD_LATENCY = _histogram(
    "prdp_reward_seconds", "s", "Seconds from a group's arrival to its answer.", SECONDS, "reward"
)
REWARD_SCORED = _counter("prdp_reward_scored_groups_total", "groups", "Groups with a score.", "reward")
REWARD_FAILED = _counter(
    "prdp_reward_failed_groups_total", "groups", "Groups the scorer failed on.", "reward"
)
REWARD_TURNED_AWAY = _counter(
    "prdp_reward_turned_away_groups_total", "groups", "Groups that came while the queue was full.", "reward"
)
REWARD_SWAPS = _counter("prdp_reward_swaps_total", "swaps", "Changes of settings taken.", "reward")
REWARD_REFUSED = _counter(
    "prdp_reward_refused_settings_total", "changes", "Changes of settings refused.", "reward"
)

REWARD_COUNTERS = (
    REWARD_BUSY,
    REWARD_SCORED,
    REWARD_FAILED,
    REWARD_TURNED_AWAY,
    REWARD_SWAPS,
    REWARD_REFUSED,
)

LIVE_METRICS: tuple[LiveMetric, ...] = (
    QUEUE_GROUPS,
    ASKED_GROUPS,
    SCORED_IMAGES,
    *WORK_COUNTERS,
    WORK_TASK,
    GPU_MEMORY,
    REWARD_QUEUE,
    REWARD_BATCH,
    REWARD_WORK,
    REWARD_LATENCY,
    *REWARD_COUNTERS,
)
