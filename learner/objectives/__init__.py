"""Objectives: pure functions from log-probs and rewards to a loss. One file each, chosen by `objective.kind`.

The driver asks for `advantages`, because it sees all groups in prompt order; each learner rank asks for the
`loss` of its groups, and differentiates it with respect to the log-probs of now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from common.cluster.metrics import MetricDefinition
from common.trajectory import Float64, GroupScore
from learner.objectives.history import RewardHistory

GroupAdvantages = list[Float64 | None]
"""Of groups in prompt order, (B,) each; None where the loss takes none."""


@dataclass(frozen=True)
class Needs:
    """What an objective makes others do.

    reference: LogProbs.ref, so that actors make reference passes. whole_epoch: `advantages` of all groups of
    an epoch at once, before any of them is learned. across_prompts: rewards of different prompts are compared
    with each other. steps: whole trajectories with log-probs, where x_0 alone would not do. kl:
    Loss.kl_weights, so that the learner makes reference passes.
    """

    reference: bool
    whole_epoch: bool
    across_prompts: bool = False
    steps: bool = True
    kl: bool = False


@dataclass(frozen=True)
class LogProbs:
    """log p(x_{t-1} | x_t, c) of one group, each float64 (B, T_s), MEAN over a latent's elements.

    now: of the policy that is trained; a loss is differentiated with respect to it. old: of the policy that
    ratios are held close to. ref: of the pretrained policy; None where the objective does not need it.
    """

    now: Tensor
    old: Tensor
    ref: Tensor | None


@dataclass(frozen=True)
class Loss:
    """One group's part of the loss. The loss of an update is sum(sum) / sum(weight) over its groups.

    sum: scalar with a graph to LogProbs.now. weight: how many terms were added up, 0 where there is nothing
    to learn. stats: by the names of Objective.statistics, each as (sum, count); reported as sum(sum) /
    sum(count) over an update's groups.
    kl_weights: float64 (B, T_s), what each step's KL(pi_theta || pi_ref), MEAN over a latent's elements,
    counts in the loss besides `sum`; the learner adds it. None for no such term.
    """

    sum: Tensor
    weight: float
    stats: Mapping[str, tuple[float, float]]
    kl_weights: Tensor | None = None

    def with_kl(self, kl: Tensor, known: Tensor) -> Loss:
        """With the KLs, float64 (B, T_s), added to `sum` and in the statistic "kl". known: which of them are,
        bool (B, T_s)."""
        if self.kl_weights is None:
            return self
        known = known & (self.kl_weights != 0)
        counted = torch.where(known, kl, 0.0)
        return replace(
            self,
            sum=self.sum.detach() + (self.kl_weights * counted).sum(),
            stats={**self.stats, "kl": (float(counted.sum()), float(known.sum()))},
        )


class AnyObjective(Protocol):
    """What the driver knows of an objective: of one on log-probs, Objective, and of one on denoising losses,
    learner.objectives.denoising.WeightedDenoising."""

    @property
    def needs(self) -> Needs:
        """What others must do for it."""
        ...

    @property
    def statistics(self) -> tuple[MetricDefinition, ...]:
        """What Loss.stats holds, as metrics objective/<name>."""
        ...

    def advantages(
        self, scores: Sequence[tuple[str, Float64]], history: RewardHistory
    ) -> tuple[GroupAdvantages, RewardHistory]:
        """Of groups in prompt order, each (prompt, rewards (B,)): advantages (B,), or None where the loss
        takes none; and the history that knows these groups too."""
        ...


class Objective(AnyObjective, Protocol):
    """Anything the learner can minimise over the log-probs of one prompt's trajectories."""

    def loss(self, log_probs: LogProbs, score: GroupScore, advantages: Tensor | None) -> Loss:
        """One group's loss. advantages: float64 (B,), as given by `advantages`."""
        ...


class WithoutAdvantages:
    """Part of an objective whose loss takes the rewards as they are."""

    def advantages(
        self, scores: Sequence[tuple[str, Float64]], history: RewardHistory
    ) -> tuple[GroupAdvantages, RewardHistory]:
        """None for every group."""
        return [None for _ in scores], history


def statistic(name: str, unit: str, description: str) -> MetricDefinition:
    """A statistic of an objective: the metric objective/<name>."""
    return MetricDefinition(f"objective/{name}", unit, description)


def statistic_names(objective: AnyObjective) -> tuple[str, ...]:
    """The keys of Loss.stats, in the order of Objective.statistics."""
    return tuple(metric.name.removeprefix("objective/") for metric in objective.statistics)
