"""REBEL, regression to relative rewards (Gao et al. 2024, arXiv 2404.16767, eq. 1).

    loss = mean over pairs of (1/eta [log pi_theta/pi_old (i) - log pi_theta/pi_old (j)] - [r_i - r_j])^2

with log-probs of whole trajectories. It is PRDP without clip and with the old policy as the reference (beta =
1/eta): the KL holds an epoch's policy close to the one before, and nothing holds it close to the pretrained
one, where the authors' code for language takes a KL to that off the rewards. As in PRDP the loss is divided
by beta^2, which moves no optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.cluster.metrics import MetricDefinition
from common.config.objectives import RebelSection
from common.trajectory import GroupScore
from learner.objectives import LogProbs, Loss, Needs, WithoutAdvantages, statistic
from learner.objectives.prdp import (
    PAIR_WEIGHTINGS,
    STEP_REDUCTIONS,
    TIES,
    pair_losses,
    tie_stats,
)


@dataclass(frozen=True)
class Rebel(WithoutAdvantages):
    """The REBEL loss of one prompt's group. kl_weight: 1/eta. The other fields are Prdp's."""

    kl_weight: float
    latent_scale: float
    step_reduction: Callable[[Tensor], Tensor]
    counted: Callable[[Tensor], Tensor]

    needs = Needs(reference=False, whole_epoch=False)
    statistics: tuple[MetricDefinition, ...] = (
        *TIES,
        statistic(
            "old_log_ratio_size",
            "nats",
            "Mean over trajectories of |log pi / pi_old| before the update, with the chosen reductions.",
        ),
    )

    @staticmethod
    def build(section: RebelSection, latent_elements: int) -> Rebel:
        """From its settings. latent_elements: of one image's latent."""
        return Rebel(
            kl_weight=section.kl_weight,
            latent_scale=float(latent_elements) if section.latent_reduction == "sum" else 1.0,
            step_reduction=STEP_REDUCTIONS[section.step_reduction],
            counted=PAIR_WEIGHTINGS[section.pair_weighting],
        )

    def loss(self, log_probs: LogProbs, score: GroupScore, advantages: Tensor | None) -> Loss:
        """Sum over unordered pairs."""
        differences = torch.tensor(score.differences)
        moved = self.step_reduction(self.latent_scale * (log_probs.now - log_probs.old))
        counted = self.counted(differences).triu(1)
        return Loss(
            sum=pair_losses(moved, differences, self.kl_weight)[counted].sum(),
            weight=float(counted.sum()),
            stats={
                **tie_stats(differences),
                "old_log_ratio_size": (float(moved.detach().abs().sum()), float(len(moved))),
            },
        )
