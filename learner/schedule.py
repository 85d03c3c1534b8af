"""The step size of each update: a function of its number alone, so a resumed run has no state of it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to the peak, half a cosine down to a share of it, constant from there on.

    peak: AdamW's step size. warmup: updates until the peak is reached, 0 = at once. decay: updates of the
    half cosine, counted from the first update; 0 = the peak throughout. final_share: of the peak, at its end.
    """

    peak: float
    warmup: int
    decay: int
    final_share: float

    def at(self, update: int) -> float:
        """The step size of update number `update`, counted from 0."""
        rising = min(1.0, (update + 1) / (self.warmup + 1))
        if not self.decay:
            return self.peak * rising
        through = min(1.0, update / self.decay)
        falling = self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * through))
        return self.peak * rising * falling
