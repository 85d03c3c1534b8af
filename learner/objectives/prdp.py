"""Proximal Reward Difference Prediction (Deng et al., CVPR 2024): equations (10) to (21) of the paper.

rhat_i = sum or mean over the steps of log pi_theta - log pi_ref. The loss of a pair asks that the difference
of rhat predicts the difference of the rewards: (rhat_i - rhat_j - (r_i - r_j) / beta)^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives import ObjectiveResult

STEP_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda log_ratio: log_ratio.sum(1),
    "mean": lambda log_ratio: log_ratio.mean(1),
}


def pair_losses(predicted: Tensor, differences: Tensor, kl_weight: float) -> Tensor:
    """Squared error of each pair (eq. 14): predicted rhat (B,), differences (B, B) -> (B, B), symmetric."""
    return (predicted[:, None] - predicted[None, :] - differences / kl_weight).square()


def clipped_log_ratio(log_ratio: Tensor, log_ratio_old: Tensor, clip_range: float) -> Tensor:
    """Each step's log ratio held within clip_range of the old policy's (eq. 20). (B, T_s) -> (B, T_s)."""
    return torch.clamp(log_ratio, log_ratio_old - clip_range, log_ratio_old + clip_range)


def untied_pairs(differences: Tensor) -> Tensor:
    """True for pairs with different rewards: the authors' loss counts no others. (B, B) -> (B, B)."""
    return differences != 0


def all_pairs(differences: Tensor) -> Tensor:
    """True for every pair. (B, B) -> (B, B)."""
    return torch.ones_like(differences, dtype=torch.bool)


PAIR_WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {"untied": untied_pairs, "all": all_pairs}


@dataclass(frozen=True)
class Prdp:
    """The PRDP loss of one prompt's group.

    kl_weight: beta. clip_range: eps, math.inf = no clipping. latent_scale: 1 for the mean over C H W, C*H*W
    for the sum. step_reduction: sum or mean over the stochastic steps. counted: which pairs enter the mean.
    """

    kl_weight: float
    clip_range: float
    latent_scale: float
    step_reduction: Callable[[Tensor], Tensor]
    counted: Callable[[Tensor], Tensor]

    def __call__(self, log_ratio: Tensor, log_ratio_old: Tensor, differences: Tensor) -> ObjectiveResult:
        """Sum over unordered pairs of max(l, l_clipped), eq. 18: chosen per pair, after the steps."""
        now, old = self.latent_scale * log_ratio, self.latent_scale * log_ratio_old
        free = pair_losses(self.step_reduction(now), differences, self.kl_weight)
        held_ratio = clipped_log_ratio(now, old, self.clip_range)
        held = pair_losses(self.step_reduction(held_ratio), differences, self.kl_weight)
        once = torch.ones_like(differences, dtype=torch.bool).triu(1)
        counted = once & self.counted(differences)
        losses = torch.maximum(free, held)[counted]
        return ObjectiveResult(
            loss_sum=losses.sum(),
            weight=float(counted.sum()),
            clipped=int(((held > free) & counted).sum()),
            tied=int(((differences == 0) & once).sum()),
            pairs=int(once.sum()),
        )
