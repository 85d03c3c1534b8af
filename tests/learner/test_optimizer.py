"""The step size of each update; a step to weights that are not finite or act on nothing is an error."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WeightsError
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.probe import Probe
from learner.objectives import LogProbs, Loss
from learner.optimizer import CheckedOptimizer, LearningRate, find_nonfinite_loss
from learner.parallel import Single
from tests.tiny_config import make_config


def checked(policy: Policy, probe: Probe, tensors: Any, rate: float = 1e-3) -> CheckedOptimizer:
    optimizer = torch.optim.AdamW(tensors, lr=1.0)
    return CheckedOptimizer(policy, optimizer, probe, LearningRate(rate, 0, 0, 1.0), Single())


@pytest.fixture
def optimizer(tiny_pipeline: Path, tmp_path: Path) -> CheckedOptimizer:
    policy, steps = load_policy(make_config(tiny_pipeline, tmp_path))
    probe = Probe.of(policy, steps)
    return checked(policy, probe, policy.trainable.parameters().values())


def gradients(policy: Policy, seed: int) -> float:
    """Set random gradients; returns their norm."""
    generator = torch.Generator().manual_seed(seed)
    parameters = policy.trainable.parameters().values()
    for value in parameters:
        value.grad = torch.randn(value.shape, generator=generator)
    return math.sqrt(sum(float(value.grad.square().sum()) for value in parameters if value.grad is not None))


def test_a_step_is_adamws_at_the_updates_rate(optimizer: CheckedOptimizer) -> None:
    before = [value.detach().clone() for value in optimizer.policy.trainable.parameters().values()]
    optimizer.step(0, gradients(optimizer.policy, 0))
    twins = [torch.nn.Parameter(value) for value in before]
    gradient = [value.grad for value in optimizer.policy.trainable.parameters().values()]
    for twin, given_ in zip(twins, gradient, strict=True):
        twin.grad = given_
    torch.optim.AdamW(twins, lr=1e-3).step()
    for value, twin in zip(optimizer.policy.trainable.parameters().values(), twins, strict=True):
        assert torch.equal(value, twin)
    optimizer.forget_gradients()
    assert all(value.grad is None for value in optimizer.policy.trainable.parameters().values())


def test_weights_that_are_not_finite_are_an_error(optimizer: CheckedOptimizer) -> None:
    broken = CheckedOptimizer(
        optimizer.policy, optimizer.optimizer, optimizer.probe, LearningRate(math.inf, 0, 0, 1.0), Single()
    )
    with pytest.raises(WeightsError, match="not finite"):
        broken.step(4, gradients(optimizer.policy, 0))


def test_a_step_of_weights_that_act_on_nothing_is_an_error(optimizer: CheckedOptimizer) -> None:
    unet: Any = optimizer.policy.guided.network
    unet.disable_adapters()
    with pytest.raises(WeightsError, match="act on nothing"):
        optimizer.step(0, gradients(optimizer.policy, 0))


def test_a_step_without_a_gradient_need_not_show(optimizer: CheckedOptimizer) -> None:
    unet: Any = optimizer.policy.guided.network
    unet.disable_adapters()
    for value in optimizer.policy.trainable.parameters().values():
        value.grad = torch.zeros_like(value)
    optimizer.step(0, 0.0)


def test_an_optimizer_of_other_tensors_is_an_error(optimizer: CheckedOptimizer) -> None:
    copies = [value.detach().clone() for value in optimizer.policy.trainable.parameters().values()]
    with pytest.raises(WeightsError, match="does not hold"):
        checked(optimizer.policy, optimizer.probe, copies).step(0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_said_in_words(value: float) -> None:
    good, bad = torch.zeros(2, 3), torch.tensor([[0.0, value, 1.0], [-value, 0.0, 1.0]])
    loss, broken = Loss(torch.tensor(0.5), 1.0, {}), Loss(torch.tensor(value), 1.0, {})
    assert find_nonfinite_loss(LogProbs(good, good, None), loss, good) == ""
    assert "log-probs" in find_nonfinite_loss(LogProbs(good, good, bad), loss, good)
    assert "log-probs" in find_nonfinite_loss(LogProbs(good, bad, None), loss, good)
    assert "the loss" in find_nonfinite_loss(LogProbs(good, good, good), broken, good)
    assert "derivatives" in find_nonfinite_loss(LogProbs(good, good, good), loss, bad)


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
