"""A reward's counts as Ray metrics, so that they reach Prometheus; Ray puts `ray_` before each name.

Every series has the label `reward`. Inside Serve, Ray adds the application, the deployment and the replica.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
_GROUPS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
_LABELS = ("reward",)


class RayMeter:
    """A meter.Meter that reports to Ray."""

    def __init__(self, reward: str) -> None:
        self._labels = {"reward": reward}
        self._queue = Gauge("prdp_reward_queue_groups", "Groups that wait for the scorer.", _LABELS)
        self._batch = Histogram("prdp_reward_batch_groups", "Groups scored together.", _GROUPS, _LABELS)
        self._work = Histogram(
            "prdp_reward_batch_seconds", "Seconds that the scorer took for a batch.", _SECONDS, _LABELS
        )
        self._latency = Histogram(
            "prdp_reward_seconds", "Seconds from a group's arrival to its answer.", _SECONDS, _LABELS
        )
        self._scored = Counter("prdp_reward_scored_groups_total", "Groups with a score.", _LABELS)
        self._failed = Counter("prdp_reward_failed_groups_total", "Groups the scorer failed on.", _LABELS)
        self._turned_away = Counter(
            "prdp_reward_turned_away_groups_total", "Groups that came while the queue was full.", _LABELS
        )
        self._swapped = Counter("prdp_reward_swaps_total", "Changes of settings taken.", _LABELS)
        self._refused = Counter("prdp_reward_refused_settings_total", "Changes of settings refused.", _LABELS)

    def waiting(self, groups: int) -> None:
        """Groups in the queue now."""
        self._queue.set(groups, self._labels)

    def batch(self, groups: int, failed: int, seconds: float) -> None:
        """A batch was scored: its groups, those of them without a score, and the scorer's seconds."""
        self._batch.observe(groups, self._labels)
        self._work.observe(seconds, self._labels)
        for counter, count in ((self._scored, groups - failed), (self._failed, failed)):
            # Ray refuses to add 0.
            if count:
                counter.inc(count, self._labels)

    def answered(self, seconds: float) -> None:
        """A group was answered so many seconds after it came."""
        self._latency.observe(seconds, self._labels)

    def turned_away(self) -> None:
        """A group came while the queue was full."""
        self._turned_away.inc(1, self._labels)

    def swapped(self) -> None:
        """New settings answer from now on."""
        self._swapped.inc(1, self._labels)

    def refused(self) -> None:
        """A change of settings was refused."""
        self._refused.inc(1, self._labels)
