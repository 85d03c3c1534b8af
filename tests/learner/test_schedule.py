"""The step size of each update."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.schedule import LearningRate


def test_it_is_constant_where_nothing_else_is_asked() -> None:
    assert {LearningRate(3e-4, 0, 0, 0.1).at(update) for update in (0, 1, 10, 10_000)} == {3e-4}


@settings(max_examples=50, deadline=None)
@given(warmup=st.integers(0, 20), decay=st.integers(0, 50), share=st.floats(0.01, 1.0))
def test_it_rises_then_falls_and_stays_within_its_bounds(warmup: int, decay: int, share: float) -> None:
    rate = LearningRate(1.0, warmup, decay, share)
    values = [rate.at(update) for update in range(100)]
    assert all(0 < value <= 1 for value in values)
    after = values[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
    assert values[99] == pytest.approx(share if decay else 1.0)


def test_the_fall_is_torchs_cosine_schedule() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.2)
    ours = LearningRate(2.0, 0, 30, 0.1)
    for update in range(31):
        assert math.isclose(ours.at(update), optimizer.param_groups[0]["lr"], rel_tol=1e-9), update
        optimizer.step()
        torchs.step()


def test_the_rise_reaches_the_peak_after_its_updates() -> None:
    assert [LearningRate(1.0, 3, 0, 1.0).at(update) for update in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
