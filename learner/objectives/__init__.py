"""Objectives: pure functions from log ratios and reward differences to a loss. One file each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class ObjectiveResult:
    """One prompt's part of the loss. The loss of an update is sum(loss_sum) / sum(weight) over its prompts.

    loss_sum: scalar tensor with a graph to log_ratio, a sum over the prompt's pairs. weight: pairs counted.
    clipped, tied: pairs where the clipped loss was the larger; pairs with equal rewards. pairs: B (B-1) / 2.
    """

    loss_sum: Tensor
    weight: float
    clipped: int
    tied: int
    pairs: int


class Objective(Protocol):
    """Anything the learner can minimise over one prompt's group."""

    def __call__(self, log_ratio: Tensor, log_ratio_old: Tensor, differences: Tensor) -> ObjectiveResult:
        """log_ratio: log pi_theta - log pi_ref (B, T_s), MEAN over C H W; log_ratio_old: the same of pi_old;
        differences: rewards r_i - r_j, antisymmetric (B, B). All float64."""
        ...
