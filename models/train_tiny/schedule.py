"""The learning rate of every stage, and the end of a stage by steps or by the clock."""

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


def progress(steps: int, minutes: float) -> Iterator[tuple[int, float, float]]:
    """Step number, share of the stage done (0..1) and seconds passed, until steps or minutes are used up.

    A slower machine so makes fewer steps, but its learning rate falls to the end all the same.
    """
    start = time.monotonic()
    for step in range(steps):
        seconds = time.monotonic() - start
        share = max(step / steps, seconds / (60 * minutes))
        if share >= 1:
            return
        yield step, share, seconds
