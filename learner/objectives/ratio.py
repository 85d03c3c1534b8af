"""The clipped surrogate of PPO over denoising steps, and how rewards become advantages.

Schulman et al. 2017, eq. 7, with one action a denoising step (Black et al. 2023, section 4.3):

    loss = mean over (i, t) of max(-A_i rho_it, -A_i clip(rho_it, 1 - eps, 1 + eps)),
    rho_it = exp(log pi_theta - log pi_old), log-probs as the MEAN over a latent's elements.

Where kl_weight is not 0, plus kl_weight times the mean over (i, t) of KL(pi_theta || pi_ref), MEAN over a
latent's elements, which has a closed form: see learner.gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.cluster.metrics import MetricDefinition
from common.config.objectives import LimitedSection, PolicyGradientSection
from common.trajectory import Float64, GroupScore
from learner.objectives import LogProbs, Loss, statistic
from learner.objectives.history import RewardHistory

OFFSET = 1e-6
"""Added to a standard deviation that is divided by, as in the authors' code of DDPO."""


STATISTICS = (
    statistic("clip_share", "share", "Share of image-steps where the clip changes the loss."),
    statistic("ratio_deviation", "", "Mean over image-steps of |pi / pi_old - 1|, log-probs as means."),
)
SIZE = statistic("advantage_size", "", "Mean over images of |advantage|.")
LIMITED = statistic("advantage_limited", "share", "Share of images whose advantage is at its limit.")
KL = statistic(
    "kl",
    "nats per element",
    "Mean over the image-steps passed of KL(pi || pi_ref) before the update, mean over a latent's elements.",
)


def less_mean(rewards: Float64, known: Float64) -> Float64:
    """Rewards (B,) less the mean of `known`, which holds them too: exactly 0 where all of these are equal,
    because AdamW would make whole steps of a mean's rounding."""
    return rewards - known.mean() if np.ptp(known) else np.zeros_like(rewards)


def centred(rewards: Float64, known: Float64, divide_by_std: bool) -> Float64:
    """Rewards (B,) less the mean of `known`, and divided by its standard deviation (ddof 0) if asked for."""
    return less_mean(rewards, known) / ((known.std() + OFFSET) if divide_by_std else 1.0)


def prompt_rewards(
    scores: Sequence[tuple[str, Float64]], known: RewardHistory, minimum: int
) -> list[Float64]:
    """The rewards that each group's baseline is taken from: those remembered of its prompt, or where they are
    fewer than `minimum`, all of the epoch."""
    everything = np.concatenate([rewards for _, rewards in scores])
    remembered = [np.array(known.rewards.get(prompt, ())) for prompt, _ in scores]
    return [rewards if len(rewards) >= minimum else everything for rewards in remembered]


@dataclass(frozen=True)
class PolicyGradient:
    """An objective of this loss, but for its advantages."""

    section: PolicyGradientSection

    advantage_statistics: ClassVar[tuple[MetricDefinition, ...]] = (SIZE,)

    @property
    def statistics(self) -> tuple[MetricDefinition, ...]:
        """See Objective."""
        kl = (KL,) if self.section.kl_weight else ()
        return (*STATISTICS, *self.advantage_statistics, *kl)

    def loss(self, log_probs: LogProbs, score: GroupScore, advantages: Tensor | None) -> Loss:
        """Sum over images and steps of the loss above. advantages: float64 (B,)."""
        if advantages is None:
            raise ValueError("The objective needs the driver's advantages, and the group has none")
        clip_range, kl_weight = self.section.clip_per_element(1), self.section.kl_weight
        ratio = (log_probs.now - log_probs.old).exp()
        gain = advantages[:, None]
        free = -gain * ratio
        held = self.hold(free, -gain * ratio.clamp(1 - clip_range, 1 + clip_range))
        count = float(ratio.numel())
        stats = {
            "clip_share": (float((held != free).sum()), count),
            "ratio_deviation": (float((ratio.detach() - 1).abs().sum()), count),
            **self.advantage_stats(advantages),
        }
        return Loss(
            sum=held.sum(),
            weight=count,
            stats={**stats, "kl": (0.0, 0.0)} if kl_weight else stats,
            kl_weights=torch.full_like(log_probs.old, kl_weight) if kl_weight else None,
        )

    def advantage_stats(self, advantages: Tensor) -> dict[str, tuple[float, float]]:
        """Statistics of advantages (B,)."""
        return {"advantage_size": (float(advantages.abs().sum()), float(len(advantages)))}

    @staticmethod
    def hold(free: Tensor, clipped: Tensor) -> Tensor:
        """What counts of the losses without and with the clip, (B, T_s)."""
        return torch.maximum(free, clipped)


@dataclass(frozen=True)
class LimitedPolicyGradient(PolicyGradient):
    """With advantages within a limit."""

    section: LimitedSection

    advantage_statistics = (SIZE, LIMITED)

    def advantage_stats(self, advantages: Tensor) -> dict[str, tuple[float, float]]:
        """See PolicyGradient."""
        at_limit = (advantages.abs() >= self.section.advantage_limit).sum()
        limited = {"advantage_limited": (float(at_limit), float(len(advantages)))}
        return {**super().advantage_stats(advantages), **limited}
