"""The clipped surrogate of PPO over denoising steps, and how rewards become advantages.

Schulman et al. 2017, eq. 7, with one action a denoising step (Black et al. 2023, section 4.3):

    loss = mean over (i, t) of max(-A_i rho_it, -A_i clip(rho_it, 1 - eps, 1 + eps)),
    rho_it = exp(log pi_theta - log pi_old), log-probs as the MEAN over a latent's elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.config.objectives import PolicyGradientSection
from common.trajectory import GroupScore
from learner.objectives import LogProbs, Loss, statistic

Float64 = NDArray[np.float64]

OFFSET = 1e-6
"""Added to a standard deviation that is divided by, as in the authors' code of DDPO."""


def centred(rewards: Float64, known: Float64, divide_by_std: bool) -> Float64:
    """Rewards (B,) less the mean of `known`, and divided by its standard deviation (ddof 0) if asked for."""
    return (rewards - known.mean()) / ((known.std() + OFFSET) if divide_by_std else 1.0)


def clipped_surrogate(
    log_probs: LogProbs, advantages: torch.Tensor | None, clip_range: float, limit: float
) -> Loss:
    """Sum over images and steps of the loss above. advantages: float64 (B,), within +- limit."""
    if advantages is None:
        raise ValueError("The objective needs the driver's advantages, and the group has none")
    ratio = (log_probs.now - log_probs.old).exp()
    gain = advantages[:, None]
    free = -gain * ratio
    clipped = -gain * ratio.clamp(1 - clip_range, 1 + clip_range)
    images, count = float(len(advantages)), float(ratio.numel())
    return Loss(
        sum=torch.maximum(free, clipped).sum(),
        weight=count,
        stats={
            "clip_share": (float((clipped > free).sum()), count),
            "ratio_deviation": (float((ratio.detach() - 1).abs().sum()), count),
            "advantage_size": (float(advantages.abs().sum()), images),
            "advantage_limited": (float((advantages.abs() >= limit).sum()), images),
        },
    )


@dataclass(frozen=True)
class PolicyGradient:
    """An objective of this loss, but for its advantages."""

    section: PolicyGradientSection

    statistics = (
        statistic("clip_share", "share", "Share of image-steps where the clipped loss is the larger."),
        statistic("ratio_deviation", "", "Mean over image-steps of |pi / pi_old - 1|, log-probs as means."),
        statistic("advantage_size", "", "Mean over images of |advantage|."),
        statistic("advantage_limited", "share", "Share of images whose advantage is at its limit."),
    )

    def loss(self, log_probs: LogProbs, score: GroupScore, advantages: torch.Tensor | None) -> Loss:
        """See Objective."""
        section = self.section
        return clipped_surrogate(log_probs, advantages, section.clip_per_element(1), section.advantage_limit)
