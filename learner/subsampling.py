"""An unbiased estimate of a gradient from a part of its terms.

The gradient is a sum over items, sum_k g_k. An item that passes with probability p_k, and then counts 1 / p_k
times, leaves the expectation as it is (Horvitz and Thompson 1952). Of as many items the variance is least for
p_k in proportion to |g_k|. That is not known before the pass; but of its derivative with respect to the
network's output, b / sigma sum_j c_j z_j with z_j standard normal, the size is |b| / sigma sqrt(sum_j c_j^2).

Systematic sampling (Madow 1949) takes one uniform number a group: the number of items that pass is then the
same in every draw, give or take one, and they are spread over the steps as their sizes are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.gradient import Wave


def inclusion_probabilities(sizes: Tensor, share: float) -> Tensor:
    """In proportion to the sizes, but at most 1, and of sum `share` times the number of sizes above 0.

    sizes: float64 (M,), not negative. Returns float64 (M,), 0 where the size is 0.
    """
    probabilities = (sizes > 0).double()
    expected = share * float(probabilities.sum())
    certain = torch.zeros_like(sizes, dtype=torch.bool)
    while share < 1:
        rest = torch.where(certain, 0.0, sizes)
        scaled = rest * ((expected - float(certain.sum())) / max(float(rest.sum()), 1e-300))
        probabilities = torch.where(certain, 1.0, scaled)
        above = probabilities > 1
        if not bool(above.any()):
            break
        certain |= above
    return probabilities


def draw(probabilities: Tensor, start: float) -> Tensor:
    """Which items pass, bool (M,): those on whose stretch of the sums of probabilities an integer minus
    `start` lies. start: uniform over [0, 1)."""
    ends = torch.floor(probabilities.cumsum(0) + start)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    return (ends > begins) | (probabilities == 1)


def thin(wave: Wave, coefficients: Tensor, gains: Tensor, share: float, starts: Sequence[float]) -> Tensor:
    """Coefficients of which about `share` of the items with any are left, and the same expectation.

    coefficients: of the wave's transitions, float64 (E,). gains: |b| / sigma of their steps, float64 (E,).
    starts: uniform over [0, 1), one a group. An item's transitions stay or go together.
    """
    items = wave.transitions[0]
    sizes = torch.zeros_like(coefficients)
    for place in [*wave.places, *wave.reference_places()]:
        sizes[place] = coefficients[place].abs() * gains[place]
    sizes = torch.zeros(wave.size, dtype=torch.float64).index_add_(0, items, sizes.square()).sqrt()
    factors = torch.zeros_like(sizes)
    for place, start in zip(wave.places, starts, strict=True):
        own = items[place].unique()
        probabilities = inclusion_probabilities(sizes[own], share)
        factors[own] = torch.where(draw(probabilities, start), 1 / probabilities, 0.0)
    return coefficients * factors[items]
