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


class Stamped(Protocol):
    """What every scorer says of itself, by attributes or properties. Runs without Ray; docs/rewards.md has
    examples of all three kinds."""

    @property
    def version(self) -> str:
        """Of the scorer's code or settings, not empty; part of every score's stamp."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of weights and settings; empty where there are none."""
        ...


class Scorer(Stamped, Protocol):
    """A pointwise reward: one finite number an image."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them, one an image -> float64 (M,),
        finite."""
        ...


class PairwiseScorer(Stamped, Protocol):
    """A judge that compares all images of a prompt at once."""

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB -> float64 (B, B), antisymmetric: by how much i beats j."""
        ...


class PairsScorer(Stamped, Protocol):
    """A judge that looks at two images at a time. The service chooses the pairs: all, or a stated budget."""

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
