"""What a learner is and what an update did: sums that every rank can add up, and the report made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.passes import Passes
from common.stopwatch import Busy
from common.trajectory import NoiseKey
from learner.objectives import LogProbs, Loss


@dataclass(frozen=True)
class LearnerFacts:
    """What a learner is, and what trajectories must fit.

    steps_fingerprint: see TrajectoryGroup. latent_shape: of one image's latent.
    is_exact: whether the same groups give the same bits each time. CPUs do; backward passes on GPUs add up in
    an order that changes. base: digest of its pretrained model; process: host:pid. nbytes: of its weights.
    """

    steps_fingerprint: str
    latent_shape: tuple[int, ...]
    is_exact: bool
    base: str
    process: str
    nbytes: int


class UpdateOutcome(Enum):
    """What became of an update. The weights changed by APPLIED alone."""

    APPLIED = "made"
    NOTHING_TO_LEARN = "no group had anything to learn from, such as images of different rewards"
    BAD_GROUP = "a group's loss, log-probs or gradient were not finite"
    BAD_GRADIENT = "the gradient was not finite"

    @property
    def is_bad(self) -> bool:
        """Whether a number was not finite."""
        return self in (UpdateOutcome.BAD_GROUP, UpdateOutcome.BAD_GRADIENT)


@dataclass(frozen=True)
class BadGroup:
    """A group that no gradient was taken of. reason: what was not finite."""

    prompt: str
    noise: NoiseKey
    reason: str

    def __str__(self) -> str:
        return f"{self.prompt!r} (prompt {self.noise.prompt_index}): {self.reason}"


@dataclass(frozen=True)
class UpdateReport:
    """One optimizer update.

    version: after it. outcome: whether it was made, or why not. bad_groups: this rank's own; they are left
    out of the epoch's later updates too. groups: of this rank, bad ones not counted.
    loss: sum over weight, see learner.objectives.Loss; stats: the objective's statistics by name, the means
    over what each counts; one that counted nothing is 0. gradient_norm: L2, before clipping.
    log_ratio_mean: mean over trajectories of the SUM over steps of log pi_old - log pi_ref, MEAN over a
    latent's elements; None without a reference. log_ratio_shares: by position of the step,
    its share of how much the images of a prompt differ in these log ratios: mean absolute deviation from the
    prompt's mean, over its sum over steps; empty without a reference, or where they are all 0.
    latent_elements: of one image's latent.
    log_ratio_mismatch: largest deviation of the learner's log-probs from the actors' at unchanged weights.
    step_gradient_norms: of the first wave's own mean gradient, by position of the step; empty where they are
    not taken. process: of this rank, host:pid; busy: its work, a piece for each wave and one for the update.
    passes: of one latent through the network, by this rank: 1 forward, 2 backward. What only fills up a
    micro-batch, or is recomputed (gradient checkpointing), does not count.
    """

    version: int
    outcome: UpdateOutcome
    bad_groups: tuple[BadGroup, ...]
    loss: float
    stats: Mapping[str, float]
    gradient_norm: float
    groups: int
    log_ratio_mean: float | None
    log_ratio_shares: Mapping[int, float]
    latent_elements: int
    log_ratio_mismatch: float
    step_gradient_norms: Mapping[int, float]
    process: str
    busy: tuple[Busy, ...]
    passes: int

    @property
    def busy_s(self) -> float:
        """Seconds of work."""
        return math.fsum(piece.seconds for piece in self.busy)

    @property
    def applied(self) -> bool:
        """Whether the weights changed."""
        return self.outcome is UpdateOutcome.APPLIED


@dataclass(frozen=True)
class Totals:
    """Sums over groups, which ranks add up: a vector of float64.

    loss, weight: see Loss. bad_groups: their number. trajectories, log_ratio: images that have a reference,
    and the sum of their log pi_old - log pi_ref. stats: (sum, count) of each of the objective's statistics.
    deviations: of each of the T steps, the sum over images of |x - mean of its group|, x = log pi_theta -
    log pi_ref.
    """

    vector: Tensor
    names: tuple[str, ...]
    steps: int

    @staticmethod
    def zero(names: tuple[str, ...], steps: int) -> Totals:
        """Nothing yet. names: of the objective's statistics; steps: T."""
        return Totals(torch.zeros(5 + 2 * len(names) + steps, dtype=torch.float64), names, steps)

    def with_group(self, loss: Loss, log_probs: LogProbs | None, positions: NDArray[np.int64]) -> Totals:
        """One more group. log_probs: None where its loss is not of any. positions: of its stochastic steps,
        (T_s,)."""
        deviations, ratios = torch.zeros(self.steps, dtype=torch.float64), (0.0, 0.0)
        if log_probs is not None and log_probs.ref is not None:
            ratio = log_probs.now.detach() - log_probs.ref
            ratios = float(len(ratio)), float((log_probs.old - log_probs.ref).sum())
            deviations[torch.from_numpy(positions)] = (ratio - ratio.mean(0)).abs().sum(0)
        stats = [value for name in self.names for value in loss.stats[name]]
        values = [float(loss.sum.detach()), loss.weight, 0.0, *ratios, *stats]
        return replace(
            self, vector=self.vector + torch.cat([torch.tensor(values, dtype=torch.float64), deviations])
        )

    def with_bad_group(self) -> Totals:
        """A group that is left out."""
        vector = self.vector.clone()
        vector[2] += 1
        return replace(self, vector=vector)

    @property
    def loss(self) -> float:
        """Sum of the losses."""
        return float(self.vector[0])

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self.vector[1])

    @property
    def bad_groups(self) -> int:
        """How many."""
        return int(self.vector[2])

    @property
    def log_ratio_mean(self) -> float | None:
        """Mean over trajectories; None without a reference."""
        trajectories, log_ratio = self.vector[3:5].tolist()
        return log_ratio / trajectories if trajectories else None

    @property
    def log_ratio_shares(self) -> dict[int, float]:
        """See UpdateReport."""
        deviations = self.vector[5 + 2 * len(self.names) :]
        shares = (deviations / deviations.sum()).tolist() if deviations.any() else []
        return {step: share for step, share in enumerate(shares) if share}

    @property
    def stats(self) -> dict[str, float]:
        """Means by name."""
        pairs = self.vector[5 : 5 + 2 * len(self.names)].view(-1, 2).tolist()
        return {name: total / max(count, 1.0) for name, (total, count) in zip(self.names, pairs, strict=True)}


@dataclass(frozen=True)
class Tally:
    """What one rank has done since the last update. groups: those that are not bad."""

    totals: Totals
    bad_groups: tuple[BadGroup, ...] = ()
    groups: int = 0
    mismatch: float = 0.0
    step_norms: Mapping[int, float] = field(default_factory=dict)
    busy: tuple[Busy, ...] = ()
    passes: Passes = field(default_factory=Passes)

    def with_passes(self, passes: Passes) -> Tally:
        """More passes."""
        return replace(self, passes=self.passes + passes)

    def with_group(self, loss: Loss, log_probs: LogProbs | None, positions: NDArray[np.int64]) -> Tally:
        """One more group, see Totals."""
        totals = self.totals.with_group(loss, log_probs, positions)
        return replace(self, totals=totals, groups=self.groups + 1)

    def with_bad_group(self, group: BadGroup) -> Tally:
        """A group that is left out."""
        bad_groups = (*self.bad_groups, group)
        return replace(self, totals=self.totals.with_bad_group(), bad_groups=bad_groups)

    def with_mismatch(self, mismatch: float) -> Tally:
        """A deviation of log-probs, see UpdateReport.log_ratio_mismatch."""
        # numpy's maximum keeps a NaN, which max() may drop.
        return replace(self, mismatch=float(np.maximum(self.mismatch, mismatch)))

    def with_work(self, busy: Busy) -> Tally:
        """A piece of work."""
        return replace(self, busy=(*self.busy, busy))
