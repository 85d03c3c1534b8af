"""What a process that samples or learns tells Prometheus about its work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments
from common.cluster.process_name import gpu_memory, process_name


class WorkMeter:
    """Counts the work of one actor or learner rank."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    @staticmethod
    def start(run_name: str, role: str) -> WorkMeter:
        """Of this process, which has done nothing yet. role: actors or learner."""
        labels = {"run": run_name, "role": role, "process": process_name()}
        meter = WorkMeter(Instruments.start(labels, live.WORK_COUNTERS))
        meter.worked(0.0)
        return meter

    @contextmanager
    def working(self, trajectories: int = 0) -> Iterator[None]:
        """Around a piece of work. trajectories: of the prompt that it is about, if it is about one."""
        started = time.perf_counter()
        yield
        self.worked(time.perf_counter() - started, trajectories)

    def worked(self, seconds: float, trajectories: int = 0, nbytes: int = 0) -> None:
        """A piece of work is done. nbytes: what it put in the object store."""
        self._instruments.record(live.WORK_BUSY, seconds)
        self._instruments.record(live.WORK_BYTES, nbytes)
        self._instruments.record(live.WORK_TRAJECTORIES, trajectories)
        if trajectories:
            self._instruments.record(live.WORK_TASK, seconds)
        self._instruments.record(live.GPU_MEMORY, gpu_memory())

    def updated(self) -> None:
        """An optimizer update has ended, applied or skipped."""
        self._instruments.record(live.UPDATES, 1)
