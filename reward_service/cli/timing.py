"""How fast a reward answers groups that come one after the other."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from reward_service.cli.target import Target

_FEWEST = 2


@dataclass(frozen=True)
class Timing:
    """Of `calls` groups of one size: pictures a second over all, and the median and slowest group."""

    calls: int
    images_per_s: float
    median_s: float
    slowest_s: float


def time_groups(target: Target, prompt: str, count: int, size: int, limit_s: float) -> Timing:
    """Time groups of `count` noise pictures, size x size pixels, for limit_s seconds but at least 2 groups.

    The first group is not counted: it loads weights and warms up. Raises RewardError where one has no score.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    target.score(prompt, pixels)
    seconds: list[float] = []
    while len(seconds) < _FEWEST or sum(seconds) < limit_s:
        started = time.perf_counter()
        target.score(prompt, pixels)
        seconds.append(time.perf_counter() - started)
    total = sum(seconds)
    return Timing(len(seconds), len(seconds) * count / total, statistics.median(seconds), max(seconds))
