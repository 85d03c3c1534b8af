"""The learning rate of every stage, and its progress in steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch


def learning_rate(step: float, steps: float, peak: float, warm_up: int = 200) -> float:
    """Linear warm-up, then half a cosine down to 2 % of ``peak``."""
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the optimizer's next step use ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def timed(steps: int) -> Iterator[tuple[int, float]]:
    """The numbers of ``steps`` steps, each with the seconds passed since the first (for the log only)."""
    start = time.monotonic()
    for step in range(steps):
        yield step, time.monotonic() - start
