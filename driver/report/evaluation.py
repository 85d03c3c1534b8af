"""What an evaluation measures: the same prompts with the same noise, before, during and after training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.trajectory import Float64, PolicyStamp


@dataclass(frozen=True)
class PromptSetEvaluation:
    """One prompt set, P prompts with I images each.

    name: "seen" (training prompts) or "unseen".
    scores: float64 (P, I) by score name. "reward" is the weighted sum trained on; the others are raw rewards
    and golds.
    pixels: uint8 (G, height, width, 3), the first image of each of the first G prompts, for the image grid.
    """

    name: str
    prompts: tuple[str, ...]
    scores: dict[str, Float64]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """All prompt sets, with the policy that was evaluated and the number of finished epochs."""

    epoch: int
    stamp: PolicyStamp
    sets: tuple[PromptSetEvaluation, ...]
