"""What one reward says about a group, or how it says that it cannot: it crosses the wires of the service."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import Float64, RewardScores, ScorerStamp

_ANTISYMMETRY = 1e-6
LONGEST_LABEL = 1000
"""Longest name, version and digest of a stamp, in characters."""


@dataclass(frozen=True)
class RewardFailure:
    """Why a group has no score. Stands where a score would; a failure is never a number."""

    reason: str


Outcome = RewardScores | RewardFailure


@dataclass(frozen=True)
class Reply:
    """The answer to one group. busy_s: its share of the seconds that the scorer worked on its batch.

    shadow: what the shadow version says about it, for the log only; None where none is set. refused: as in
    Description.
    """

    outcome: Outcome
    busy_s: float
    shadow: Outcome | None = None
    refused: str = ""


@dataclass(frozen=True)
class Description:
    """A served reward in words: its stamp, the scorer's path and kind, and its settings without secrets.

    refused: why the last change of settings was refused; empty where it was not. ready: it takes groups.
    """

    name: str
    stamp: ScorerStamp
    scorer: str = ""
    kind: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    ready: bool = True


@dataclass(frozen=True)
class Report:
    """How a served reward is.

    state: Serve's word for it, RUNNING where all is well. told: what Serve says of it. replicas: those that
    run. answers: what replicas say of themselves. silence: why some do not, empty where all do.
    """

    state: str
    told: str
    replicas: int
    answers: tuple[Description, ...]
    silence: str


RUNNING = "RUNNING"


class BusyError(Exception):
    """The queue is full: ask again after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"The queue is full; ask again in {retry_after_s:g} s.")
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[BusyError], tuple[float]]:
        return type(self), (self.retry_after_s,)


class Backend(Protocol):
    """What an HTTP front needs of the reward behind it: a Serve replica, or an engine in the same process."""

    async def score(self, prompt: str, images: NDArray[np.uint8]) -> Reply:
        """Score one group. images: uint8 (B, height, width, 3) RGB. Raises BusyError."""
        ...

    async def describe(self) -> Description:
        """Which reward this is, and how it is set."""
        ...

    async def probe(self) -> float:
        """Seconds since the scorer last worked, after a warm forward pass where that is long ago and costs no
        money. Raises RewardError where the scorer does not work."""
        ...


def check_scores(scores: RewardScores, images: int) -> RewardScores:
    """The scores, differences made exactly antisymmetric; rewards (B,), differences (B, B) for B = images.

    Raises RewardError where a count or shape is wrong, a number is not finite, the differences are not
    antisymmetric, or the stamp does not name one version.
    """
    rewards = _finite("rewards", scores.rewards, (images,))
    differences = antisymmetric(_finite("differences", scores.differences, (images, images)), "Its")
    if not (np.isfinite(scores.residual) and scores.residual >= 0.0):
        raise RewardError(f"Its residual is {scores.residual}, which is no finite number of at least 0.")
    check_stamp(scores.stamp)
    return RewardScores(rewards, differences, float(scores.residual), scores.stamp)


def check_stamp(stamp: ScorerStamp) -> None:
    """Raises RewardError where a stamp does not name one version, or is too long to be one."""
    if not stamp.name or not stamp.version:
        raise RewardError(f"Its stamp names no reward or no version: {stamp}.")
    if max(len(stamp.name), len(stamp.version), len(stamp.digest)) > LONGEST_LABEL:
        raise RewardError(f"Its stamp is longer than {LONGEST_LABEL} characters.")


def antisymmetric(differences: Float64, whose: str) -> Float64:
    """The differences (B, B), their rounding errors halved away.

    Raises RewardError, beginning with `whose`, where d[i, j] + d[j, i] is not 0.
    """
    excess = float(np.abs(differences + differences.T).max(initial=0.0))
    if excess > _ANTISYMMETRY * max(1.0, float(np.abs(differences).max(initial=0.0))):
        raise RewardError(
            f"{whose} differences are not antisymmetric: d[i, j] + d[j, i] is up to {excess:g} and must be 0."
        )
    return (differences - differences.T) / 2.0


def _finite(what: str, values: Float64, shape: tuple[int, ...]) -> Float64:
    if values.shape != shape:
        raise RewardError(f"Its {what} have the shape {values.shape}; needed is {shape}.")
    if not np.isfinite(values).all():
        raise RewardError(f"Its {what} are not all finite numbers.")
    return np.asarray(values, dtype=np.float64)
