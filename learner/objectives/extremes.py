"""Learn from the best and the worst images of a prompt only, with any objective on log-probs.

All B images are sampled and scored, and advantages know all their rewards; the loss is that of the k best and
the k worst. The others' log-probs have the coefficient 0, so the learner need not pass them. Regression keeps
its optimum, because it asks for the same log ratios of every pair, however the pair was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.cluster.metrics import MetricDefinition
from common.trajectory import Float64, GroupScore
from learner.objectives import GroupAdvantages, LogProbs, Loss, Needs, Objective
from learner.objectives.history import RewardHistory


def best_and_worst(rewards: Float64, count: int) -> NDArray[np.int64]:
    """Indices of the `count` best and the `count` worst images, increasing; of all where there are no more.

    rewards: (B,). Among equal rewards the images that come first count as worse.
    """
    order = np.argsort(rewards, kind="stable")
    return np.sort(np.concatenate([order[:count], order[max(count, len(order) - count) :]]))


@dataclass(frozen=True)
class Extremes:
    """An objective on the `count` best and the `count` worst images of each group."""

    objective: Objective
    count: int

    @property
    def needs(self) -> Needs:
        """See Objective."""
        return self.objective.needs

    @property
    def statistics(self) -> tuple[MetricDefinition, ...]:
        """The objective's, of the images that are learned from."""
        return self.objective.statistics

    def advantages(
        self, scores: Sequence[tuple[str, Float64]], history: RewardHistory
    ) -> tuple[GroupAdvantages, RewardHistory]:
        """The objective's, of all images."""
        return self.objective.advantages(scores, history)

    def loss(self, log_probs: LogProbs, score: GroupScore, advantages: Tensor | None) -> Loss:
        """The objective's loss of these images."""
        kept = best_and_worst(score.rewards, self.count)
        rows = torch.from_numpy(kept)
        loss = self.objective.loss(
            LogProbs(
                now=log_probs.now[rows],
                old=log_probs.old[rows],
                ref=None if log_probs.ref is None else log_probs.ref[rows],
            ),
            GroupScore(
                rewards=score.rewards[kept],
                differences=score.differences[np.ix_(kept, kept)],
                parts={name: values[kept] for name, values in score.parts.items()},
                scorers=score.scorers,
            ),
            None if advantages is None else advantages[rows],
        )
        if loss.kl_weights is None:
            return loss
        weights = torch.zeros_like(log_probs.old).index_copy(0, rows, loss.kl_weights)
        return replace(loss, kl_weights=weights)
