"""Training scenes drawn at random, and pictures as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.scenes import (
    BACKGROUNDS,
    COUNTS,
    OBJECTS,
    POSITIONS,
    RELATIONS,
    SIZES,
    Kind,
    Scene,
    is_heldout,
    pair,
    several,
    single,
)

# Pairs are the hardest and by far the most numerous, so they get the most pictures.
KIND_SHARES: dict[Kind, float] = {Kind.SINGLE: 0.25, Kind.COUNT: 0.15, Kind.PAIR: 0.6}


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _random_single(rng: np.random.Generator) -> Scene:
    return single(_pick(SIZES, rng), _pick(OBJECTS, rng), _pick(POSITIONS, rng), _pick(BACKGROUNDS, rng))


def _random_count(rng: np.random.Generator) -> Scene:
    return several(COUNTS[int(rng.integers(len(COUNTS)))], _pick(OBJECTS, rng), _pick(BACKGROUNDS, rng))


def _random_pair(rng: np.random.Generator) -> Scene:
    first, second = rng.choice(len(OBJECTS), 2, replace=False)
    return pair(
        _pick(SIZES, rng),
        OBJECTS[first],
        _pick(RELATIONS, rng),
        _pick(SIZES, rng),
        OBJECTS[second],
        _pick(BACKGROUNDS, rng),
    )


_RANDOM: dict[Kind, Callable[[np.random.Generator], Scene]] = {
    Kind.SINGLE: _random_single,
    Kind.COUNT: _random_count,
    Kind.PAIR: _random_pair,
}


def random_scene(rng: np.random.Generator, heldout: bool = False) -> Scene:
    """One scene of the training split (or of the held-out one), its kind drawn by ``KIND_SHARES``."""
    kind = list(KIND_SHARES)[int(rng.choice(len(KIND_SHARES), p=list(KIND_SHARES.values())))]
    while True:
        scene = _RANDOM[kind](rng)
        if is_heldout(scene) == heldout:
            return scene


def to_tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """(N, 64, 64, 3) uint8 -> (N, 3, 64, 64) float32 in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
