"""Sums that ranks add up, and what must not be averaged away."""

from __future__ import annotations

import math

import pytest
import torch

from learner.objectives import LogProbs, Loss
from learner.report import Tally, Totals

ZEROS = torch.zeros(2, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    "mismatches", [(math.nan, 1e-7, 1e-8), (1e-7, math.nan, 1e-8), (1e-8, 1e-7, math.nan), (1e-8, 3e-7, 1e-7)]
)
def test_the_mismatch_is_the_largest_and_an_undefined_one_stays(mismatches: tuple[float, ...]) -> None:
    tally = Tally(Totals.zero(()))
    for mismatch in mismatches:
        tally = tally.with_mismatch(mismatch)
    undefined = any(math.isnan(value) for value in mismatches)
    assert math.isnan(tally.mismatch) if undefined else tally.mismatch == 3e-7


def test_totals_of_ranks_add_up_to_means_over_what_was_counted() -> None:
    names = ("share", "size")
    one = Totals.zero(names).with_group(
        Loss(torch.tensor(1.5), 4.0, {"share": (1.0, 4.0), "size": (3.0, 2.0)}),
        LogProbs(ZEROS + 0.5, ZEROS, ZEROS),
    )
    other = Totals.zero(names).with_bad_group()
    other = other.with_group(
        Loss(torch.tensor(0.5), 0.0, {"share": (0.0, 0.0), "size": (1.0, 2.0)}), LogProbs(ZEROS, ZEROS, ZEROS)
    )
    both = Totals(one.vector + other.vector, names)
    assert (both.loss, both.weight, both.bad_groups) == (2.0, 4.0, 1)
    assert both.stats == {"share": 0.25, "size": 1.0}
    # The sum over three steps of 0.5, mean over four trajectories of which two have moved.
    assert both.log_ratio_mean == 0.75
    assert Totals.zero(names).stats == {"share": 0.0, "size": 0.0}


def test_without_a_reference_there_is_no_log_ratio() -> None:
    totals = Totals.zero(()).with_group(Loss(torch.tensor(1.0), 1.0, {}), LogProbs(ZEROS, ZEROS, None))
    assert totals.log_ratio_mean is None
