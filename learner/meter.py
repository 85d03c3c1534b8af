"""What a learner rank's process tells Prometheus about its work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments, keep_shown
from common.cluster.process_name import gpu_memory, process_name


class RankMeter:
    """Counts the work of one rank's process."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    @staticmethod
    def start(run_name: str) -> RankMeter:
        """Of this process, which has learned nothing yet."""
        instruments = Instruments({"run": run_name, "role": "learner", "process": process_name()})
        for counter in (live.LEARNER_TRAJECTORIES, live.LEARNER_BUSY, live.LEARNER_UPDATES):
            instruments.record(counter, 0)
        instruments.record(live.GPU_MEMORY, gpu_memory())
        keep_shown(instruments)
        return RankMeter(instruments)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around a piece of work."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._instruments.record(live.LEARNER_BUSY, time.perf_counter() - started)
            self._instruments.record(live.GPU_MEMORY, gpu_memory())

    def took_in(self, trajectories: int) -> None:
        """A group was taken in."""
        self._instruments.record(live.LEARNER_TRAJECTORIES, trajectories)

    def updated(self) -> None:
        """An update has ended, applied or skipped."""
        self._instruments.record(live.LEARNER_UPDATES, 1)
