"""What an update did: sums that every rank can add up, and the report made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from common.stopwatch import Busy
from common.trajectory import NoiseKey
from learner.objectives import ObjectiveResult


class Outcome(Enum):
    """What became of an update. The weights changed by APPLIED alone."""

    APPLIED = "made"
    NOTHING_TO_LEARN = "no two pictures of any prompt had different rewards"
    BAD_GROUP = "a group's loss, log ratios or gradient were not finite"
    BAD_GRADIENT = "the gradient was not finite"
    BAD_WEIGHTS = "the step made weights or the optimizer's state non-finite, and was undone"

    @property
    def is_bad(self) -> bool:
        """Whether a number was not finite."""
        return self in (Outcome.BAD_GROUP, Outcome.BAD_GRADIENT, Outcome.BAD_WEIGHTS)


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
    out of the epoch's later updates too.
    loss: mean over counted pairs. gradient_norm: L2, before clipping. clip_share, tie_share: of counted and
    of all pairs. tied_groups: prompts whose images all had the same reward. log_ratio_mean: mean over
    trajectories of the SUM over steps of log pi_theta - log pi_ref, MEAN over C H W, before the update.
    latent_elements: C * H * W. log_ratio_mismatch: largest deviation of the learner's log-probs from the
    actors' at unchanged weights. step_gradient_norms: of the first group's own mean-over-pairs gradient, one
    a stochastic step (empty for updates 2..K). process: of this rank, host:pid; busy: its work, a piece for
    each group and one for the update.
    """

    version: int
    outcome: Outcome
    bad_groups: tuple[BadGroup, ...]
    loss: float
    gradient_norm: float
    clip_share: float
    tie_share: float
    tied_groups: int
    groups: int
    log_ratio_mean: float
    latent_elements: int
    log_ratio_mismatch: float
    step_gradient_norms: tuple[float, ...]
    process: str
    busy: tuple[Busy, ...]

    @property
    def busy_s(self) -> float:
        """Seconds of work."""
        return math.fsum(piece.seconds for piece in self.busy)

    @property
    def applied(self) -> bool:
        """Whether the weights changed."""
        return self.outcome is Outcome.APPLIED


@dataclass(frozen=True)
class Tally:
    """Sums of one rank since the last update.

    totals: float64 (9,): loss sum, counted pairs, clipped, tied, pairs, tied groups, trajectories, sum of log
    ratios, bad groups. groups: those that are not bad.
    """

    totals: Tensor
    bad_groups: tuple[BadGroup, ...]
    groups: int
    mismatch: float
    step_norms: Tensor
    busy: tuple[Busy, ...]

    @staticmethod
    def zero() -> Tally:
        """Nothing yet."""
        return Tally(torch.zeros(9, dtype=torch.float64), (), 0, 0.0, torch.zeros(0), ())

    @property
    def is_empty(self) -> bool:
        """True before the first group."""
        return self.groups == 0

    def with_group(
        self, result: ObjectiveResult, log_ratio: Tensor, mismatch: float, step_norms: Tensor, busy: Busy
    ) -> Tally:
        """One more group. log_ratio: (B, T_s), MEAN over C H W."""
        own = [
            float(result.loss_sum.detach()),
            result.weight,
            float(result.clipped),
            float(result.tied),
            float(result.pairs),
            float(result.tied == result.pairs),
            float(log_ratio.shape[0]),
            float(log_ratio.sum()),
            0.0,
        ]
        return replace(
            self,
            totals=self.totals + torch.tensor(own, dtype=torch.float64),
            groups=self.groups + 1,
            # numpy's maximum keeps a NaN, which max() may drop.
            mismatch=float(np.maximum(self.mismatch, mismatch)),
            step_norms=step_norms / max(result.weight, 1.0) if self.is_empty else self.step_norms,
            busy=(*self.busy, busy),
        )

    def with_bad_group(self, group: BadGroup, busy: Busy) -> Tally:
        """A group that is left out."""
        totals = self.totals.clone()
        totals[-1] += 1
        bad_groups = (*self.bad_groups, group)
        return replace(self, totals=totals, bad_groups=bad_groups, busy=(*self.busy, busy))


def summarise(
    tally: Tally,
    totals: Tensor,
    norm: float,
    outcome: Outcome,
    version: int,
    latent_elements: int,
    process: str,
    busy: Busy,
) -> UpdateReport:
    """The report of an update. totals: summed over ranks; tally: this rank's own."""
    loss, counted, clipped, tied, pairs, tied_groups, trajectories, log_ratio, _ = totals.tolist()
    return UpdateReport(
        version=version,
        outcome=outcome,
        bad_groups=tally.bad_groups,
        loss=loss / max(counted, 1.0),
        gradient_norm=norm,
        clip_share=clipped / max(counted, 1.0),
        tie_share=tied / max(pairs, 1.0),
        tied_groups=int(tied_groups),
        groups=tally.groups,
        log_ratio_mean=log_ratio / max(trajectories, 1.0),
        latent_elements=latent_elements,
        log_ratio_mismatch=tally.mismatch,
        step_gradient_norms=tuple(tally.step_norms.tolist()),
        process=process,
        busy=(*tally.busy, busy),
    )
