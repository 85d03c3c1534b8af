"""Denoising Diffusion Policy Optimization with importance sampling (DDPO-IS; Black, Janner, Du, Kostrikov,
Levine 2023, arXiv 2305.13301, section 4.3; advantages by prompt: their appendix and code, ddpo-pytorch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.config.objectives import DdpoSection
from common.trajectory import Float64
from learner.objectives import GroupAdvantages, Needs
from learner.objectives.history import RewardHistory
from learner.objectives.ratio import LimitedPolicyGradient, centred, less_mean, prompt_rewards


@dataclass(frozen=True)
class Ddpo(LimitedPolicyGradient):
    """The DDPO loss of one prompt's group, and the advantages of an epoch's groups."""

    section: DdpoSection

    @property
    def needs(self) -> Needs:
        """See Objective."""
        return Needs(
            reference=False,
            whole_epoch=True,
            across_prompts=self.section.baseline != "group",
            kl=self.section.kl_weight > 0,
        )

    @staticmethod
    def build(section: DdpoSection, latent_elements: int) -> Ddpo:
        """From its settings. Ratios are of means over a latent, however many elements it has."""
        return Ddpo(section)

    def advantages(
        self, scores: Sequence[tuple[str, Float64]], history: RewardHistory
    ) -> tuple[GroupAdvantages, RewardHistory]:
        """Rewards less a baseline, over a standard deviation, within +- advantage_limit.

        batch: mean and deviation of all rewards of the epoch. prompt: of the prompt's remembered rewards,
        these included; of the epoch's where they are fewer than history_minimum. group: the mean is that of
        the prompt's images, the deviation that of all rewards of the epoch less these means.
        """
        section = self.section
        if not scores:
            return [], history
        after = history.with_rewards(scores, section.history, section.history_prompts)
        bases = {"batch": self._of_batch, "prompt": self._of_prompt, "group": self._of_group}
        found = bases[section.baseline](scores, after)
        limit = section.advantage_limit
        kept = after if section.baseline == "prompt" else history
        return [np.clip(values, -limit, limit) for values in found], kept

    def _of_batch(self, scores: Sequence[tuple[str, Float64]], _known: RewardHistory) -> list[Float64]:
        everything = np.concatenate([rewards for _, rewards in scores])
        return [centred(rewards, everything, self.section.divide_by_std) for _, rewards in scores]

    def _of_prompt(self, scores: Sequence[tuple[str, Float64]], known: RewardHistory) -> list[Float64]:
        bases = prompt_rewards(scores, known, self.section.history_minimum)
        return [
            centred(rewards, basis, self.section.divide_by_std)
            for (_, rewards), basis in zip(scores, bases, strict=True)
        ]

    def _of_group(self, scores: Sequence[tuple[str, Float64]], _known: RewardHistory) -> list[Float64]:
        less = [less_mean(rewards, rewards) for _, rewards in scores]
        everything = np.concatenate(less)
        return [centred(values, everything, self.section.divide_by_std) for values in less]
