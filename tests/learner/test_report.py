"""The report of an update: what must not be averaged away."""

from __future__ import annotations

import math

import pytest
import torch

from common.stopwatch import Busy
from learner.objectives import ObjectiveResult
from learner.report import Tally

RESULT = ObjectiveResult(torch.tensor(0.5), weight=4.0, clipped=1, tied=0, pairs=4)


@pytest.mark.parametrize(
    "mismatches", [(math.nan, 1e-7, 1e-8), (1e-7, math.nan, 1e-8), (1e-8, 1e-7, math.nan)]
)
def test_an_undefined_mismatch_of_any_group_stays_visible(mismatches: tuple[float, ...]) -> None:
    tally = Tally.zero()
    for mismatch in mismatches:
        tally = tally.with_group(RESULT, torch.zeros(2, 3), mismatch, torch.ones(3), Busy(0.0, 0.1))
    assert math.isnan(tally.mismatch)


def test_the_mismatch_is_the_largest_of_the_groups() -> None:
    tally = Tally.zero()
    for mismatch in (1e-8, 3e-7, 1e-7):
        tally = tally.with_group(RESULT, torch.zeros(2, 3), mismatch, torch.ones(3), Busy(0.0, 0.1))
    assert tally.mismatch == 3e-7
