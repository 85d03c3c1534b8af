"""The seams between the parts. Each is a Protocol with more than one implementation, or with one per side of
Ray."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.trajectory import GroupScore


class Scorer(Protocol):
    """A pointwise reward: one finite number an image. Runs without Ray; a user writes one class like this.

    Example::

        class Redness:
            version = "1"
            digest = ""          # no weights

            def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
                return images[..., 0].mean(axis=(1, 2)) / 255.0
    """

    @property
    def version(self) -> str:
        """Of the scorer's code or settings; part of every score's stamp."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of weights and settings; empty where there are none."""
        ...

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them, one an image -> float64 (M,),
        finite."""
        ...


class GroupScorer(Protocol):
    """Scores the images of one prompt: what the reward service offers and the trainer asks for."""

    def score_group(self, prompt: str, images: NDArray[np.uint8]) -> GroupScore:
        """images: uint8 (B, height, width, 3) -> rewards (B,), differences (B, B).

        Raises RewardError where any scorer fails; a failure is never a number.
        """
        ...
