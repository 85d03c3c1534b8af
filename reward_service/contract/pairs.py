"""Which pairs of a group a judge is asked about, and what its answers say about every image."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import Float64

Pairs = NDArray[np.int64]
"""(P, 2), each row two different images; the first is shown first."""


def all_pairs_count(count: int) -> int:
    """How many pairs `count` images have."""
    return count * (count - 1) // 2


def plan_pairs(count: int, budget: int, seed: int) -> Pairs:
    """The pairs to ask about for `count` images, int64 (P, 2); each pair at most once, in one orientation.

    budget: how many pairs, at least count - 1; 0, or as many as there are, means all. The pairs connect all
    images. Any two images are in equally many pairs, give or take 2, and each image comes first as
    often as second, give or take 1, so that a judge who prefers the first place favours no image. Few pairs
    are spread so that the differences between far images are known as well as possible.

    Raises RewardError for a budget too small to connect the images.
    """
    if count < 1:
        raise RewardError(f"A group to compare has {count} images; it needs at least 1.")
    if budget < 0 or 0 < budget < count - 1:
        raise RewardError(
            f"A budget of {budget} pairs cannot connect {count} images. Give at least {count - 1}, or 0 "
            f"for all {all_pairs_count(count)} pairs."
        )
    wanted = min(budget or all_pairs_count(count), all_pairs_count(count))
    rng = np.random.default_rng(seed)
    seats = rng.permutation(count)
    ring = np.concatenate([np.zeros((0, 2), np.int64), *(_chords(count, step) for step in _steps(count))])
    pairs = seats[ring[:wanted]]
    return pairs[rng.permutation(wanted)].astype(np.int64)


def solve_pairs(count: int, pairs: Pairs, answers: Float64) -> tuple[Float64, Float64, float]:
    """Rewards, differences and residual from a judge's answers.

    pairs: int (P, 2), connected, each pair once; answers: float64 (P,), by how much image pairs[p, 0] beats
    image pairs[p, 1].

    Returns the least-squares rewards float64 (count,) with mean 0; the differences float64 (count, count),
    which are the answers where all pairs were asked and otherwise those of the rewards; and the residual: the
    root mean square over the pairs of answer minus difference of rewards, in units of the answers.

    Raises RewardError for pairs or answers that leave this undetermined.
    """
    pairs, answers = _checked(count, pairs, answers)
    first, second = pairs[:, 0], pairs[:, 1]
    measured = np.zeros((count, count))
    measured[first, second] = answers
    measured[second, first] = -answers
    rewards = _least_squares(count, pairs, measured.sum(axis=1))
    fitted = rewards[:, None] - rewards[None, :]
    misses = answers - fitted[first, second]
    residual = float(np.sqrt(np.mean(misses**2))) if len(pairs) else 0.0
    return rewards, measured if len(pairs) == all_pairs_count(count) else fitted, residual


def _steps(count: int) -> list[int]:
    """Every distance on a ring of `count` seats, in the order in which chords of that distance are asked.

    After the ring itself comes, each time, the distance that lowers most the summed variance of all
    differences, which is the sum of the inverse eigenvalues of the graph. The half ring comes last: its
    chords are half as many, and only one set of chords may be left unfinished.
    """
    waves = 2.0 * np.pi * np.arange(1, count) / count
    left = list(range(2, (count + 1) // 2))
    chosen = [1] if count > 2 else []
    known = 2.0 - 2.0 * np.cos(waves)
    while left:
        gains = 2.0 - 2.0 * np.cos(np.outer(left, waves))
        # Rounded, so that distances which are equally good are told apart by their order, not by the machine.
        best = int(np.argmin(np.round((1.0 / (known + gains)).sum(axis=1), 9)))
        known = known + gains[best]
        chosen.append(left.pop(best))
    return chosen + ([count // 2] if count % 2 == 0 else [])


def _chords(count: int, step: int) -> Pairs:
    """All pairs of seats `step` apart on a ring, in an order that spreads a beginning of them evenly."""
    if 2 * step == count:
        first = np.arange(step)
    else:
        # The step makes `rings` rings of its own. Every other chord along each of them comes first; the ring
        # of step 1 is walked, so that all of it but its last pair connects.
        rings = math.gcd(count, step)
        ring, place = np.arange(count) % rings, np.arange(count) // rings
        order = np.argsort(place % 2, kind="stable") if step > 1 else np.arange(count)
        first = (ring + place * step)[order] % count
    return np.stack([first, (first + step) % count], axis=1).astype(np.int64)


def _least_squares(count: int, pairs: Pairs, sums: Float64) -> Float64:
    laplacian = np.zeros((count, count))
    laplacian[pairs[:, 0], pairs[:, 1]] = laplacian[pairs[:, 1], pairs[:, 0]] = -1.0
    np.fill_diagonal(laplacian, -laplacian.sum(axis=1))
    rewards = np.linalg.solve(laplacian + 1.0 / count, sums).astype(np.float64)
    return rewards - rewards.mean()


def _checked(count: int, pairs: Pairs, answers: Float64) -> tuple[Pairs, Float64]:
    pairs, answers = np.asarray(pairs), np.asarray(answers, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise RewardError(f"Pairs must be whole numbers (P, 2), got {pairs.dtype} {pairs.shape}.")
    if answers.shape != (len(pairs),) or not np.isfinite(answers).all():
        raise RewardError(f"Wanted {len(pairs)} finite answers, one a pair; got {answers.tolist()}.")
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= count or (pairs[:, 0] == pairs[:, 1]).any()):
        raise RewardError(f"Each pair must name two different images of 0..{count - 1}: {pairs.tolist()}.")
    if len({frozenset(pair) for pair in pairs.tolist()}) < len(pairs):
        raise RewardError(f"A pair is asked twice: {pairs.tolist()}.")
    if not _connected(count, pairs):
        raise RewardError(f"These pairs do not connect all {count} images: {pairs.tolist()}.")
    return pairs.astype(np.int64), answers


def _connected(count: int, pairs: Pairs) -> bool:
    reached = np.zeros(count, dtype=bool)
    reached[:1] = True
    for _ in range(count):
        touched = reached[pairs].any(axis=1)
        reached[pairs[touched].ravel()] = True
    return bool(reached.all())
