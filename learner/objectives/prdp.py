"""Proximal Reward Difference Prediction (Deng et al., CVPR 2024): equations (10) to (21) of the paper.

rhat_i = sum or mean over the steps of log pi_theta - log pi_ref. The loss of a pair asks that the difference
of rhat predicts the difference of the rewards: (rhat_i - rhat_j - (r_i - r_j) / beta)^2. Without the clip it
is the paper's RDP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.cluster.metrics import MetricDefinition
from common.config.objectives import PrdpSection
from common.trajectory import GroupScore
from learner.objectives import LogProbs, Loss, Needs, WithoutAdvantages, statistic

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


TIES = (
    statistic("tie_share", "share", "Share of pairs of the same prompt whose rewards are equal."),
    statistic("tied_groups", "share", "Share of prompts whose images all got the same reward."),
)


def tie_stats(differences: Tensor) -> dict[str, tuple[float, float]]:
    """Statistics TIES of one group's differences of rewards (B, B)."""
    tied, pairs = float((differences == 0).triu(1).sum()), len(differences) * (len(differences) - 1) / 2
    return {"tie_share": (tied, pairs), "tied_groups": (float(tied == pairs), 1.0)}


PAIR_WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {"untied": untied_pairs, "all": all_pairs}


@dataclass(frozen=True)
class Prdp(WithoutAdvantages):
    """The PRDP loss of one prompt's group.

    kl_weight: beta. clip_range: eps, math.inf = no clipping. latent_scale: 1 for the mean over a latent's
    elements, their number for the sum. step_reduction: sum or mean over the stochastic steps. counted: which
    pairs enter the mean.
    """

    kl_weight: float
    clip_range: float
    latent_scale: float
    step_reduction: Callable[[Tensor], Tensor]
    counted: Callable[[Tensor], Tensor]

    needs = Needs(reference=True, whole_epoch=False)
    statistics: tuple[MetricDefinition, ...] = (
        statistic("clip_share", "share", "Share of counted pairs where the clipped loss is the larger."),
        *TIES,
        statistic(
            "log_ratio_mean",
            "nats",
            "Mean over trajectories of rhat = log pi / pi_ref before the update, with the chosen reductions.",
        ),
    )

    @staticmethod
    def build(section: PrdpSection, latent_elements: int) -> Prdp:
        """From its settings. latent_elements: of one image's latent."""
        return Prdp(
            kl_weight=section.kl_weight,
            clip_range=section.clip_range if section.clip else math.inf,
            latent_scale=float(latent_elements) if section.latent_reduction == "sum" else 1.0,
            step_reduction=STEP_REDUCTIONS[section.step_reduction],
            counted=PAIR_WEIGHTINGS[section.pair_weighting],
        )

    def loss(self, log_probs: LogProbs, score: GroupScore, advantages: Tensor | None) -> Loss:
        """Sum over unordered pairs of max(l, l_clipped), eq. 18: chosen per pair, after the steps."""
        if log_probs.ref is None:
            raise ValueError("PRDP needs the log-probs of the reference, and the trajectories have none")
        differences = torch.tensor(score.differences)
        now = self.latent_scale * (log_probs.now - log_probs.ref)
        old = self.latent_scale * (log_probs.old - log_probs.ref)
        predicted = self.step_reduction(now)
        free = pair_losses(predicted, differences, self.kl_weight)
        within = clipped_log_ratio(now, old, self.clip_range)
        clipped = pair_losses(self.step_reduction(within), differences, self.kl_weight)
        counted = self.counted(differences).triu(1)
        weight = float(counted.sum())
        return Loss(
            sum=torch.maximum(free, clipped)[counted].sum(),
            weight=weight,
            stats={
                "clip_share": (float(((clipped > free) & counted).sum()), weight),
                **tie_stats(differences),
                "log_ratio_mean": (float(predicted.detach().sum()), float(len(predicted))),
            },
        )
