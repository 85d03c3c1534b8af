"""Sums that ranks add up, and what must not be averaged away."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learner.objectives import LogProbs, Loss
from learner.report import Tally, Totals

ZEROS = torch.zeros(2, 3, dtype=torch.float64)
RATIOS = torch.tensor([[1.0, 2.0, 5.0], [3.0, 2.0, -1.0]], dtype=torch.float64)
STEPS = np.array([0, 1, 3])


@pytest.mark.parametrize(
    "mismatches", [(math.nan, 1e-7, 1e-8), (1e-7, math.nan, 1e-8), (1e-8, 1e-7, math.nan), (1e-8, 3e-7, 1e-7)]
)
def test_the_mismatch_is_the_largest_and_an_undefined_one_stays(mismatches: tuple[float, ...]) -> None:
    tally = Tally(Totals.zero((), 4))
    for mismatch in mismatches:
        tally = tally.with_mismatch(mismatch)
    undefined = any(math.isnan(value) for value in mismatches)
    assert math.isnan(tally.mismatch) if undefined else tally.mismatch == 3e-7


def test_totals_of_ranks_add_up_to_means_over_what_was_counted() -> None:
    names = ("share", "size")
    one = Totals.zero(names, 4).with_group(
        Loss(torch.tensor(1.5), 4.0, {"share": (1.0, 4.0), "size": (3.0, 2.0)}),
        LogProbs(ZEROS, ZEROS + 0.5, ZEROS),
        STEPS,
    )
    other = Totals.zero(names, 4).with_bad_group()
    other = other.with_group(
        Loss(torch.tensor(0.5), 0.0, {"share": (0.0, 0.0), "size": (1.0, 2.0)}),
        LogProbs(ZEROS, ZEROS, ZEROS),
        STEPS,
    )
    both = Totals(one.vector + other.vector, names, 4)
    assert (both.loss, both.weight, both.bad_groups) == (2.0, 4.0, 1)
    assert both.stats == {"share": 0.25, "size": 1.0}
    # The sum over three steps of 0.5, mean over four trajectories of which two have moved.
    assert both.log_ratio_mean == 0.75
    assert both.log_ratio_shares == {}
    assert Totals.zero(names, 4).stats == {"share": 0.0, "size": 0.0}


def test_without_a_reference_there_is_no_log_ratio() -> None:
    loss, log_probs = Loss(torch.tensor(1.0), 1.0, {}), LogProbs(ZEROS + RATIOS, ZEROS, None)
    totals = Totals.zero((), 4).with_group(loss, log_probs, STEPS)
    assert totals.log_ratio_shares == {}
    assert totals.log_ratio_mean is None


def test_a_steps_share_is_how_much_a_prompts_images_differ_there() -> None:
    loss = Loss(torch.tensor(1.0), 1.0, {})
    totals = Totals.zero((), 4).with_group(loss, LogProbs(RATIOS, ZEROS, ZEROS), STEPS)
    assert totals.log_ratio_shares == {0: 0.25, 3: 0.75}
    window = totals.with_group(loss, LogProbs(RATIOS[:, :1] + 7, ZEROS[:, :1], ZEROS[:, :1]), np.array([2]))
    assert window.log_ratio_shares == {0: 0.2, 2: 0.2, 3: 0.6}
