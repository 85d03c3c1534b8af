"""Group Relative Policy Optimization on denoising steps (Shao et al. 2024, arXiv 2402.03300, eq. 3, outcome
supervision; for flow models Flow-GRPO, arXiv 2505.05470, eqs. 4 and 5, whose KL is the closed form of
kl_weight).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.config.objectives import GrpoSection
from common.trajectory import Float64
from learner.objectives import GroupAdvantages, Needs
from learner.objectives.history import RewardHistory
from learner.objectives.ratio import LimitedPolicyGradient, centred


@dataclass(frozen=True)
class Grpo(LimitedPolicyGradient):
    """The GRPO loss of one prompt's group."""

    section: GrpoSection

    @property
    def needs(self) -> Needs:
        """See Objective."""
        return Needs(reference=False, whole_epoch=False, kl=self.section.kl_weight > 0)

    @staticmethod
    def build(section: GrpoSection, latent_elements: int) -> Grpo:
        """From its settings. Ratios are of means over a latent, however many elements it has."""
        return Grpo(section)

    def advantages(
        self, scores: Sequence[tuple[str, Float64]], history: RewardHistory
    ) -> tuple[GroupAdvantages, RewardHistory]:
        """Rewards less the mean of the prompt's images, over their standard deviation, within the limit."""
        limit = self.section.advantage_limit
        return [
            np.clip(centred(rewards, rewards, self.section.divide_by_std), -limit, limit)
            for _, rewards in scores
        ], history
