"""Diffusion Negative-aware FineTuning (DiffusionNFT; Zheng et al. 2025, arXiv 2509.16117, theorem 3.2, eq. 5,
with the choices of section 3.3 and algorithm 1 as the authors' code, train_nft_sd3.py, has them):

    L = E [ r |v+ - v|^2 + (1 - r) |v- - v|^2 ],   v+ = (1 - beta) v_old + beta v_theta,
                                                   v- = (1 + beta) v_old - beta v_theta

    r = 1/2 + 1/2 clip((reward - mean of the prompt's images) / Z, -1, 1),   Z = advantage_limit x deviation

v is what the network predicts: v+ and v- are linear in it, so noise or x_0 serve as well as a velocity. The
squared error is the x_0's, over its mean absolute error held constant. As in the code each term is multiplied
by advantage_limit / beta, and reference_weight |v_theta - v_ref|^2 is added. Old, the policy that samples,
follows the trained one at the end of each epoch, after i updates in all (the paper's i counts epochs):

    old <- eta_i old + (1 - eta_i) theta,   eta_i = min(old_decay_rate i, old_decay_limit)

At theta = old the gradient is that of the sum over images of A_i |v_theta - v|^2, where A = advantage_limit
(2r - 1) is the clipped advantage: weighted regression with a sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from common.cluster.metrics import MetricDefinition
from common.config.objectives import NftSection
from common.trajectory import Float64, GroupScore
from learner.objectives import GroupAdvantages, Loss, Needs, statistic, statistic_names
from learner.objectives.denoising import AWAY, OLD, REFERENCE, ImageWeights, Mirror, WeightedDenoising
from learner.objectives.history import RewardHistory
from learner.objectives.ratio import less_mean

OFFSET = 1e-4
"""Added to a standard deviation that is divided by, as in the authors' code."""


@dataclass(frozen=True)
class Nft(WeightedDenoising):
    """The loss of one prompt's group: mean over images."""

    section: NftSection

    needs: ClassVar[Needs] = Needs(reference=False, whole_epoch=True, steps=False)
    statistics: ClassVar[tuple[MetricDefinition, ...]] = (
        statistic("denoising_loss", "", "Mean over items of the positive prediction's loss, unweighted."),
        statistic("negative_loss", "", "Mean over items of the negative prediction's loss, unweighted."),
        statistic("old_deviation", "", "Mean over items and elements of (f - f_old)^2, before the update."),
        statistic("reference_deviation", "", "The same to the reference; 0 where it is not asked."),
        statistic("advantage_size", "", "Mean over images of |advantage|."),
        statistic("advantage_limited", "share", "Share of images whose advantage is at its limit."),
    )

    @staticmethod
    def build(section: NftSection, latent_elements: int) -> Nft:
        """From its settings. The loss is a mean over a latent's elements, however many there are."""
        return Nft(section)

    @property
    def mirror(self) -> Mirror:
        """See WeightedDenoising."""
        return Mirror(self.section.beta, self.section.adaptive)

    @property
    def reference_weight(self) -> float:
        """See WeightedDenoising."""
        return self.section.reference_weight

    def old_decay(self, updates: int) -> float | None:
        """eta_i."""
        return min(self.section.old_decay_rate * updates, self.section.old_decay_limit)

    def advantages(
        self, scores: Sequence[tuple[str, Float64]], history: RewardHistory
    ) -> tuple[GroupAdvantages, RewardHistory]:
        """Rewards less the mean of the prompt's images, over a deviation (ddof 0), within the limit.

        deviation: of all rewards of the epoch (batch), or of the prompt's images (group).
        """
        if not scores:
            return [], history
        everything = np.concatenate([rewards for _, rewards in scores])
        limit = self.section.advantage_limit
        found: GroupAdvantages = []
        for _, rewards in scores:
            spread = (everything if self.section.normaliser == "batch" else rewards).std()
            found.append(np.clip(less_mean(rewards, rewards) / (spread + OFFSET), -limit, limit))
        return found, history

    def image_weights(self, score: GroupScore, advantages: Float64 | None) -> ImageWeights:
        """See WeightedDenoising."""
        if advantages is None:
            raise ValueError("DiffusionNFT needs the driver's advantages, and the group has none")
        section, images = self.section, float(len(advantages))
        limit = section.advantage_limit
        optimality = np.clip(0.5 + 0.5 * advantages / limit, 0.0, 1.0)
        scale = limit / section.beta
        return ImageWeights(
            towards=scale * optimality,
            away=scale * (1 - optimality),
            reference=np.full_like(advantages, section.reference_weight),
            weight=images,
            stats={
                "advantage_size": (float(np.abs(advantages).sum()), images),
                "advantage_limited": (float((np.abs(advantages) >= limit).sum()), images),
            },
        )

    def loss(self, weights: ImageWeights, values: Tensor) -> Loss:
        """See WeightedDenoising."""
        loss, count = super().loss(weights, values), float(values.shape[0] * values.shape[1])
        columns = {"negative_loss": AWAY, "old_deviation": OLD, "reference_deviation": REFERENCE}
        measured = {name: (float(values[..., at].sum()), count) for name, at in columns.items()}
        every = {**loss.stats, **measured}
        return replace(loss, stats={name: every[name] for name in statistic_names(self)})
