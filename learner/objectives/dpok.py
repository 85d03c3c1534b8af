"""DPOK (Fan et al. 2023, arXiv 2305.16381; google-research/dpok, train_online_pg.py):

    loss = mean over (i, t) of -w_r (r_i - V) clip(rho_it, 1 - eps, 1 + eps) + w_kl KL(pi_theta || pi_ref)

What differs from the authors' code, and why:
- Their value V(x_t, prompt, t) is a small network that is fitted to the final reward. Here it is V(prompt),
  the mean of the prompt's remembered rewards, as in DDPO: what such a network can know before it sees the
  image, without weights of its own to place, train and save. It leaves more variance at the late steps.
- Their KL is the mean square of the difference of the predicted noises. Here it is the paper's, the KL of the
  two Gaussians: that square times the step's gain squared, b^2 / sigma^2, and one half.
- They draw transitions from a buffer of about twenty trajectories; here an update takes all of the epoch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from common.config.objectives import DpokSection
from common.trajectory import Float64
from learner.objectives import GroupAdvantages, Needs
from learner.objectives.history import RewardHistory
from learner.objectives.ratio import PolicyGradient, less_mean, prompt_rewards


@dataclass(frozen=True)
class Dpok(PolicyGradient):
    """The DPOK loss of one prompt's group, and the advantages of an epoch's groups."""

    section: DpokSection

    @property
    def needs(self) -> Needs:
        """See Objective."""
        return Needs(reference=False, whole_epoch=True, across_prompts=True, kl=self.section.kl_weight > 0)

    @staticmethod
    def build(section: DpokSection, latent_elements: int) -> Dpok:
        """From its settings. Ratios are of means over a latent, however many elements it has."""
        return Dpok(section)

    def advantages(
        self, scores: Sequence[tuple[str, Float64]], history: RewardHistory
    ) -> tuple[GroupAdvantages, RewardHistory]:
        """w_r (r - V): V is the mean of the prompt's remembered rewards, these included; of the epoch's where
        they are fewer than history_minimum."""
        section = self.section
        if not scores:
            return [], history
        after = history.with_rewards(scores, section.history, section.history_prompts)
        bases = prompt_rewards(scores, after, section.history_minimum)
        return [
            section.reward_weight * less_mean(rewards, basis)
            for (_, rewards), basis in zip(scores, bases, strict=True)
        ], after

    @staticmethod
    def hold(free: Tensor, clipped: Tensor) -> Tensor:
        """The clipped loss alone, as in the authors' code: outside the range a step has no gradient."""
        return clipped
