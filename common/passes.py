"""The network's passes that a prompt takes: what actors and learner count, and what the driver expects.

A pass is one prediction for one latent; guidance multiplies all alike by the passes that it takes for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.config.schema import Config
from common.trajectory import tree_widths

GRADIENT = 3.0
"""What a forward and backward pass counts as."""


@dataclass(frozen=True)
class Passes:
    """Of the learner. forward: without a graph. gradient: forward and backward."""

    forward: float = 0
    gradient: float = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.gradient + other.gradient)

    def cost(self, gradient: float = GRADIENT) -> float:
        """In forward passes. gradient: what one forward and backward costs."""
        return self.forward + gradient * self.gradient


def sampling_passes(images: int, steps: int, branch_at: Sequence[int], reference_steps: Iterable[int]) -> int:
    """To sample a prompt's images: each distinct latent at every step, and at these by the reference."""
    widths = tree_widths(images, steps, branch_at)
    return sum(widths[:steps]) + sum(widths[step] for step in reference_steps)


def learned_items(config: Config) -> float:
    """Of a prompt whose rewards differ, what an update takes the gradient of; the expectation where it is
    drawn. Where the schedule chooses the steps that are learned, all count."""
    of_objective = config.objective.learned_items(config.sampling.images_per_prompt, _learned_widths(config))
    return config.optimizer.term_share * of_objective


def learning_passes(config: Config, update: int, stale: bool) -> Passes:
    """Of a prompt in an update, 0..K-1, of an epoch that is not the first. stale: whether it was sampled with
    weights older than those that are trained when the epoch's first update begins."""
    objective = config.objective
    held = objective.held_items(config.sampling.images_per_prompt, _learned_widths(config))
    return Passes(objective.forward_passes(update, stale) * held, learned_items(config))


def _learned_widths(config: Config) -> list[tuple[int, int]]:
    """Of each step that is learned, the distinct latents that it begins at and leads to."""
    sampling = config.sampling
    widths = tree_widths(sampling.images_per_prompt, sampling.steps, sampling.branch_at)
    return [(widths[step], widths[step + 1]) for step in sampling.learned_steps]
