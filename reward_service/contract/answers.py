"""Calling a scorer, and what its answers must be: real, finite, and of the right shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from common.errors import RewardError
from common.trajectory import Float64

_ANTISYMMETRY = 1e-6


def ask(name: str, call: Callable[[], object]) -> object:
    """The scorer's own answer. Raises RewardError naming it where it raises anything."""
    try:
        return call()
    except Exception as error:
        raise RewardError(f"Scorer {name!r} raised {type(error).__name__}: {error}") from error


def numbers(name: str, answer: object, shape: tuple[int, ...], wanted: str) -> Float64:
    """The answer as finite float64 of that shape. Raises RewardError saying what it is instead."""
    try:
        array = np.asarray(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"Scorer {name!r} returned a {type(answer).__name__} that is no array ({error}); "
            f"wanted {wanted}, a numpy array of shape {shape}."
        ) from error
    if array.dtype.kind not in "fiu":
        raise RewardError(f"Scorer {name!r} returned type {array.dtype}; wanted {wanted}, of type float64.")
    if array.shape != shape:
        raise RewardError(f"Scorer {name!r} returned shape {array.shape}; wanted {wanted}: {shape}.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(int(index) for index in bad[0])
        raise RewardError(
            f"Scorer {name!r} returned {len(bad)} of {array.size} numbers that are not finite, the first "
            f"({array[where]}) at {list(where)}."
        )
    return array.astype(np.float64)


def antisymmetric(name: str, matrix: Float64) -> Float64:
    """The matrix, its rounding errors halved away. Raises RewardError where d[i, j] + d[j, i] is not 0."""
    excess = float(np.abs(matrix + matrix.T).max())
    if excess > _ANTISYMMETRY * max(1.0, float(np.abs(matrix).max())):
        raise RewardError(
            f"Scorer {name!r} returned differences that are not antisymmetric: "
            f"d[i, j] + d[j, i] is up to {excess:g} and must be 0."
        )
    return (matrix - matrix.T) / 2.0
