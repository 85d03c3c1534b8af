"""Every number that is not finite is found, wherever it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from learner.finite import all_finite, find_nonfinite_gradient, find_nonfinite_loss
from learner.objectives import ObjectiveResult


@given(st.lists(st.lists(st.floats(width=32, allow_subnormal=False), max_size=6), max_size=4))
def test_a_sum_shows_what_each_number_would(values: list[list[float]]) -> None:
    tensors = [torch.tensor(row, dtype=torch.float32) for row in values]
    bounded = [torch.where(tensor.isfinite(), tensor.clamp(-1e30, 1e30), tensor) for tensor in tensors]
    assert all_finite(bounded) == all(math.isfinite(value) for row in bounded for value in row.tolist())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_wrong_is_said_in_words(value: float) -> None:
    good, bad = torch.zeros(2, 3), torch.tensor([[0.0, value], [-value, 0.0]])
    sound = ObjectiveResult(torch.tensor(0.5), 1.0, 0, 0, 1)
    broken = ObjectiveResult(torch.tensor(value), 1.0, 0, 0, 1)
    assert find_nonfinite_loss(good, sound, good) == ""
    assert find_nonfinite_loss(bad, sound, good) == "log ratios not finite"
    assert find_nonfinite_loss(good, broken, good) == "the loss not finite"
    assert find_nonfinite_loss(good, sound, bad) == "the loss's derivatives not finite"
    parameters = [nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
    parameters[2].grad = torch.ones(2, 2)
    assert find_nonfinite_gradient(good, parameters) == ""
    assert find_nonfinite_gradient(bad, parameters) == "the learner's log-probs not finite"
    parameters[1].grad = bad
    assert find_nonfinite_gradient(good, parameters) == "the gradient not finite"
