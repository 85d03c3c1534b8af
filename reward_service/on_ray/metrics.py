"""A reward's counts as Ray metrics, so that they reach Prometheus; see common/cluster/live_metrics.py.

Every series has the label `reward`. Inside Serve, Ray adds the application, the deployment and the replica.
"""

from __future__ import annotations

from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments


class RayMeter:
    """A meter.Meter that reports to Ray."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    @staticmethod
    def start(reward: str) -> RayMeter:
        """Of this process, which has counted nothing yet."""
        meter = RayMeter(Instruments.start({"reward": reward}, live.REWARD_COUNTERS))
        meter.waiting(0)
        return meter

    def waiting(self, groups: int) -> None:
        """Groups in the queue now."""
        self._instruments.record(live.REWARD_QUEUE, groups)

    def batch(self, groups: int, failed: int, seconds: float) -> None:
        """A batch was scored: its groups, those of them without a score, and the scorer's seconds."""
        self._instruments.record(live.REWARD_BATCH, groups)
        self._instruments.record(live.REWARD_WORK, seconds)
        self._instruments.record(live.REWARD_BUSY, seconds)
        self._instruments.record(live.REWARD_SCORED, groups - failed)
        self._instruments.record(live.REWARD_FAILED, failed)

    def answered(self, seconds: float) -> None:
        """A group was answered so many seconds after it came."""
        self._instruments.record(live.REWARD_LATENCY, seconds)

    def turned_away(self) -> None:
        """A group came while the queue was full."""
        self._instruments.record(live.REWARD_TURNED_AWAY, 1)

    def swapped(self) -> None:
        """New settings answer from now on."""
        self._instruments.record(live.REWARD_SWAPS, 1)

    def refused(self) -> None:
        """A change of settings was refused."""
        self._instruments.record(live.REWARD_REFUSED, 1)
