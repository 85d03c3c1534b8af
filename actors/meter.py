"""What an actor's process tells Prometheus about its work."""

from __future__ import annotations

from actors.actor import SampleReport
from common.cluster import live_metrics as live
from common.cluster.instruments import Instruments, keep_shown
from common.cluster.process_name import gpu_memory, process_name


class ActorMeter:
    """Counts the tasks of one actor's process."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    @staticmethod
    def start(run_name: str) -> ActorMeter:
        """Of this process, which has sampled nothing yet."""
        instruments = Instruments({"run": run_name, "role": "actors", "process": process_name()})
        for counter in (live.ACTOR_IMAGES, live.ACTOR_BUSY, live.ACTOR_BYTES):
            instruments.record(counter, 0)
        instruments.record(live.GPU_MEMORY, gpu_memory())
        keep_shown(instruments)
        return ActorMeter(instruments)

    def sampled(self, report: SampleReport) -> None:
        """A task is done."""
        self._instruments.record(live.ACTOR_IMAGES, report.images)
        self._instruments.record(live.ACTOR_BUSY, report.busy_s)
        self._instruments.record(live.ACTOR_TASK, report.busy_s)
        self._instruments.record(live.ACTOR_BYTES, report.nbytes)
        self._instruments.record(live.GPU_MEMORY, gpu_memory())
