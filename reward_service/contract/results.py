"""What one reward says about a group, or how it says that it cannot: it crosses the wires of the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.trajectory import Float64, ScorerStamp


@dataclass(frozen=True)
class RewardScores:
    """One reward's unweighted say about the B pictures of one prompt, all by one scorer version.

    rewards: float64 (B,), in the scorer's own units; for a judge of pairs the least-squares rewards.
    differences: float64 (B, B), antisymmetric; differences[i, j] = how much better picture i is than j.
    residual: root mean square, over the pairs measured, of differences[i, j] - (rewards[i] - rewards[j]);
        0 for a scorer that gives each picture a number.
    stamp: which reward, version and weights.
    """

    rewards: Float64
    differences: Float64
    residual: float
    stamp: ScorerStamp


@dataclass(frozen=True)
class RewardFailure:
    """Why a group has no score. Stands where a score would; a failure is never a number."""

    reason: str


@dataclass(frozen=True)
class NoShadow:
    """Stands where a shadow's say would: no shadow is set."""


Outcome = RewardScores | RewardFailure


@dataclass(frozen=True)
class Reply:
    """The answer to one group. busy_s: its share of the seconds that the scorer worked on its batch.

    shadow: what the shadow version says about it, for the log only.
    """

    outcome: Outcome
    busy_s: float
    shadow: Outcome | NoShadow


@dataclass(frozen=True)
class Description:
    """A served reward in words: its stamp, the scorer's path and kind, and its settings without secrets.

    refused: why the last change of settings was refused; empty where it was not. ready: it takes groups.
    """

    name: str
    stamp: ScorerStamp
    scorer: str
    kind: str
    settings: dict[str, Any]
    refused: str
    ready: bool


class BusyError(Exception):
    """The queue is full: ask again after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"The queue is full; ask again in {retry_after_s:g} s.")
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[BusyError], tuple[float]]:
        return type(self), (self.retry_after_s,)


class Backend(Protocol):
    """What an HTTP front needs of the reward behind it: a Serve replica, or an engine in the same process."""

    async def score(self, prompt: str, pixels: NDArray[np.uint8]) -> Reply:
        """Score one group. pixels: uint8 (B, height, width, 3) RGB. Raises BusyError."""
        ...

    async def describe(self) -> Description:
        """Which reward this is, and how it is set."""
        ...

    async def probe(self) -> float:
        """Seconds since the scorer last worked, after a warm forward pass where that is long ago and costs no
        money. Raises RewardError where the scorer does not work."""
        ...
