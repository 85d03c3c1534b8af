"""Reward-ranked finetuning (RAFT; Dong et al. 2023, arXiv 2304.06767, as in its diffusion experiment): sample
a prompt's images, keep the best, finetune on it with the plain denoising loss, repeat.

It is RWR in the limit of temperature 0, ties included: images that share the best reward share the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config.objectives import RaftSection
from common.trajectory import Float64, GroupScore
from learner.objectives.denoising import ImageWeights, WeightedDenoising
from learner.objectives.rwr import best_shares


@dataclass(frozen=True)
class Raft(WeightedDenoising):
    """The RAFT loss of one prompt's group."""

    section: RaftSection

    @staticmethod
    def build(section: RaftSection, latent_elements: int) -> Raft:
        """From its settings. The loss is a mean over a latent's elements, however many there are."""
        return Raft(section)

    def image_weights(self, score: GroupScore, advantages: Float64 | None) -> ImageWeights:
        """See WeightedDenoising."""
        kept = self.section.learned_images(len(score.rewards))
        return ImageWeights.of_share(best_shares(score.rewards, kept))
