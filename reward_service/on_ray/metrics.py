"""A reward's counts as Ray metrics, so that they reach Prometheus; see common/cluster/live_metrics.py.

Every series has the label `reward`. Inside Serve, Ray adds the application, the deployment and the replica.
"""

from __future__ import annotations

from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments
from reward_service.engine.meter import Meter


class RayMeter(Meter):
    """Reports to Ray."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    @staticmethod
    def start(reward: str) -> RayMeter:
        """Of this process, which has counted nothing yet."""
        meter = RayMeter(Instruments.start({"reward": reward}, live.REWARD_COUNTERS))
        meter.waiting(0)
        return meter

    def waiting(self, groups: int) -> None:
        self._instruments.record(live.REWARD_QUEUE, groups)

    def batch(self, groups: int, failed: int, seconds: float) -> None:
        self._instruments.record(live.REWARD_BATCH, groups)
        self._instruments.record(live.REWARD_WORK, seconds)
        self._instruments.record(live.REWARD_BUSY, seconds)
        self._instruments.record(live.REWARD_SCORED, groups - failed)
        self._instruments.record(live.REWARD_FAILED, failed)

    def answered(self, seconds: float) -> None:
        self._instruments.record(live.REWARD_LATENCY, seconds)

    def turned_away(self) -> None:
        self._instruments.record(live.REWARD_TURNED_AWAY, 1)

    def swapped(self) -> None:
        self._instruments.record(live.REWARD_SWAPS, 1)

    def refused(self) -> None:
        self._instruments.record(live.REWARD_REFUSED, 1)
