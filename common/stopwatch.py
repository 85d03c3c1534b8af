"""When a process worked: pieces of time that timelines are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Busy:
    """A piece of work. began_at: seconds since 1970 by the clock of its own machine; seconds: how long."""

    began_at: float
    seconds: float


@dataclass(frozen=True)
class Stopwatch:
    """A point in time, by the wall clock and by one that never jumps. Both in seconds."""

    wall_s: float
    steady_s: float

    @staticmethod
    def now() -> Stopwatch:
        """This one."""
        return Stopwatch(time.time(), time.perf_counter())

    def until_now(self) -> Busy:
        """The work since then."""
        return Busy(self.wall_s, time.perf_counter() - self.steady_s)
