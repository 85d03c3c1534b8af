"""Reward-weighted regression on the denoising loss (RWR), in the two forms to which DDPO was compared (Black,
Janner, Du, Kostrikov, Levine 2023, arXiv 2305.13301, section 4.2; after Peters and Schaal 2007 and Lee et al.
2023, arXiv 2302.12192), with shares taken within each prompt (their appendix D.3):

    softmax:  share_i = exp(r_i / temperature) / sum over the prompt's images
    sparse:   share_i = 1 / n for the n images with r_i >= C, C the prompt's reward of rank `kept_share`

Their beta, 0.2, is an inverse temperature: 5 here, for rewards that are aesthetic scores or kilobytes.

For temperature -> 0, and for kept_share 1 / B, both are RAFT; for temperature -> infinity finetuning on all
of the policy's own images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from common.config.objectives import RwrSection
from common.trajectory import Float64, GroupScore
from learner.objectives.denoising import ImageWeights, WeightedDenoising


def softmax_shares(rewards: Float64, temperature: float) -> Float64:
    """Shares of images (B,) that add up to 1."""
    return np.asarray(softmax(rewards / temperature))


def best_shares(rewards: Float64, kept: int) -> Float64:
    """Equal shares of the `kept` images of the highest rewards, and of those tied with the last of them."""
    chosen = rewards >= np.sort(rewards)[-kept]
    return np.asarray(chosen / chosen.sum(), dtype=np.float64)


@dataclass(frozen=True)
class Rwr(WeightedDenoising):
    """The RWR loss of one prompt's group: mean over prompts of the sum over images of share x loss."""

    section: RwrSection

    @staticmethod
    def build(section: RwrSection, latent_elements: int) -> Rwr:
        """From its settings. The loss is a mean over a latent's elements, however many there are."""
        return Rwr(section)

    def image_weights(self, score: GroupScore, advantages: Float64 | None) -> ImageWeights:
        """See WeightedDenoising."""
        rewards, section = score.rewards, self.section
        if section.weighting == "sparse":
            return ImageWeights.of_share(best_shares(rewards, section.learned_images(len(rewards))))
        return ImageWeights.of_share(softmax_shares(rewards, section.temperature))
