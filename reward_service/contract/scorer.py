"""What a user writes: a scorer of one of three kinds, and what else it may say of itself.

The kind is decided by which one of three methods a class has: `score` (a number an image), `compare` (a
matrix of differences) or `compare_pairs` (a judge of single pairs).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PromptImages = tuple[str, NDArray[np.uint8]]
"""A prompt and its images, uint8 (B, height, width, 3) RGB."""

MOST_RATIO = 8
"""Longest side of an image over its shortest. Models take squares, and resize the shorter side first: a line
of pixels would become an image of gigabytes."""

Settings = Mapping[str, str | int | float | bool]


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


class PairwiseScorer(Protocol):
    """A judge that compares all images of a prompt at once. Runs without Ray; a user writes one class.

    Example::

        class Judge:
            version = "1"
            digest = ""

            def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
                wins = ask_somebody(prompt, images)          # (B, B), wins[i, j]: share of votes for i over j
                return wins - wins.T
    """

    @property
    def version(self) -> str:
        """Names the code or settings; an attribute will do."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of weights and settings, or empty; an attribute will do."""
        ...

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB -> float64 (B, B), antisymmetric: by how much i beats j."""
        ...


class PairsScorer(Protocol):
    """A judge that looks at two images at a time. The service chooses the pairs: all, or a stated budget.

    Example::

        class Duel:
            version = "1"
            digest = ""
            deterministic = False      # it may answer otherwise when asked again

            def compare_pairs(
                self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
            ) -> NDArray[np.float64]:
                return np.array([ask_somebody(prompt, images[i], images[j]) for i, j in pairs])
    """

    @property
    def version(self) -> str:
        """Names the code or settings; an attribute will do."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of weights and settings, or empty; an attribute will do."""
        ...

    def compare_pairs(
        self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB; pairs: int (P, 2) -> float64 (P,): by how much
        images[pairs[p, 0]] beats images[pairs[p, 1]]."""
        ...


AnyScorer = Scorer | PairwiseScorer | PairsScorer


NEEDED = (
    "exactly one of score(prompts, images), one number an image; compare(prompt, images), a matrix of "
    "differences; compare_pairs(prompt, images, pairs), one difference a pair"
)


def why_narrow(height: int, width: int) -> str:
    """Why images of these sides would be too large once they are prepared for a model; empty otherwise."""
    if max(height, width) <= MOST_RATIO * min(height, width):
        return ""
    return f"Images of {height} x {width} are too narrow; allowed: one side {MOST_RATIO} times the other."


def is_deterministic(scorer: AnyScorer) -> bool:
    """Whether it answers the same when asked again: true unless it declares `deterministic = False`."""
    return bool(getattr(scorer, "deterministic", True))


def is_paid(scorer: AnyScorer) -> bool:
    """Whether somebody is paid for its answers: false unless it declares `paid = True`."""
    return bool(getattr(scorer, "paid", False))


def prompts_of(scorer: AnyScorer, otherwise: Sequence[str]) -> tuple[str, ...]:
    """What it is tested with: the prompts `otherwise`, unless it declares `check_prompts` of its own."""
    return tuple(getattr(scorer, "check_prompts", ())) or tuple(otherwise)


def digest_settings(settings: Settings) -> str:
    """SHA-256 (hex) of settings, independent of their order."""
    return digest_files((), settings)


def digest_files(files: Sequence[Path], settings: Settings) -> str:
    """SHA-256 (hex) over the settings and over name and content of each file, independent of their order."""
    total = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for file in sorted(files, key=lambda file: file.name):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"|{file.name}|{content}".encode())
    return total.hexdigest()
