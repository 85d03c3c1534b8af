"""Engines for the tests, and those they report to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import numpy as np

from reward_service.contract.settings import ServedReward
from reward_service.engine.engine import Engine
from reward_service.engine.meter import Meter

SCORERS = "tests.reward_service.scorers"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


class Recorder(Meter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.counts = {"swapped": 0, "refused": 0, "turned_away": 0, "answered": 0}

    def batch(self, groups: int, failed: int, seconds: float) -> None:
        self.batches.append((groups, failed))

    def answered(self, seconds: float) -> None:
        self.counts["answered"] += 1

    def turned_away(self) -> None:
        self.counts["turned_away"] += 1

    def swapped(self) -> None:
        self.counts["swapped"] += 1

    def refused(self) -> None:
        self.counts["refused"] += 1


class Ends:
    """Stands where the process would end."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.happened = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.happened.set()


@asynccontextmanager
async def running(
    scorer: str, ends: Ends | None = None, meter: Recorder | None = None, **settings: Any
) -> AsyncIterator[Engine]:
    """An engine that is closed afterwards."""
    served = ServedReward.model_validate({"scorer": scorer, **settings})
    engine = await Engine.start("mine", served, ends or Ends(), meter or Recorder())
    try:
        yield engine
    finally:
        engine.close()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 60.0))

    return run
