"""A step that would break the weights is undone to the bit; one that acts on nothing is an error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import WeightsError
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.probe import Probe
from learner.optimizer import CheckedOptimizer, StepBackup
from tests.tiny_config import make_config


@pytest.fixture
def step(tiny_pipeline: Path, tmp_path: Path) -> CheckedOptimizer:
    policy, distribution = load_policy(make_config(tiny_pipeline, tmp_path))
    optimizer = torch.optim.AdamW(policy.trainable.parameters().values(), lr=1e-3)
    return CheckedOptimizer(policy, optimizer, Probe.of(policy, distribution))


def gradients(policy: Policy, seed: int) -> float:
    """Set random gradients; returns their norm."""
    generator = torch.Generator().manual_seed(seed)
    parameters = policy.trainable.parameters().values()
    for value in parameters:
        value.grad = torch.randn(value.shape, generator=generator)
    return math.sqrt(sum(float(value.grad.square().sum()) for value in parameters if value.grad is not None))


def snapshot(step: CheckedOptimizer) -> list[torch.Tensor]:
    parameters = step.policy.trainable.parameters()
    backup = StepBackup.take(parameters, step.optimizer)
    return [*backup.weights.values(), *(value for one in backup.state.values() for value in one.values())]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("rate", [math.inf, math.nan])
def test_a_step_to_weights_that_are_not_finite_is_undone(
    step: CheckedOptimizer, earlier: int, rate: float
) -> None:
    for seed in range(earlier):
        assert step.take(gradients(step.policy, seed))
    before = snapshot(step)
    step.optimizer.param_groups[0]["lr"] = rate
    assert not step.take(gradients(step.policy, 7))
    assert same(snapshot(step), before)


def test_after_an_undone_step_training_goes_on_to_the_bits_of_one_never_tried(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    ends = []
    for disturbed in (False, True):
        policy, distribution = load_policy(make_config(tiny_pipeline, tmp_path))
        optimizer = torch.optim.AdamW(policy.trainable.parameters().values(), lr=1e-3)
        step = CheckedOptimizer(policy, optimizer, Probe.of(policy, distribution))
        for seed in range(3):
            if disturbed:
                optimizer.param_groups[0]["lr"] = math.inf
                assert not step.take(gradients(policy, 9))
                optimizer.param_groups[0]["lr"] = 1e-3
            assert step.take(gradients(policy, seed))
        ends.append(snapshot(step))
    assert same(*ends)


def test_an_optimizer_state_that_overflows_is_undone_though_the_weights_are_finite(
    step: CheckedOptimizer,
) -> None:
    before = snapshot(step)
    norm = gradients(step.policy, 0)
    for value in step.policy.trainable.parameters().values():
        assert value.grad is not None
        value.grad.mul_(1e30)
    assert not step.take(norm * 1e30)
    assert same(snapshot(step), before)


def test_a_step_of_weights_that_act_on_nothing_is_an_error(step: CheckedOptimizer) -> None:
    unet: Any = step.policy.guided.unet
    unet.disable_adapters()
    with pytest.raises(WeightsError, match=r"An update with a gradient of norm .* act on nothing"):
        step.take(gradients(step.policy, 0))


def test_a_step_without_a_gradient_need_not_show(step: CheckedOptimizer) -> None:
    unet: Any = step.policy.guided.unet
    unet.disable_adapters()
    for value in step.policy.trainable.parameters().values():
        value.grad = torch.zeros_like(value)
    assert step.take(0.0)


def test_an_optimizer_of_other_tensors_is_an_error(step: CheckedOptimizer) -> None:
    copies = [value.detach().clone() for value in step.policy.trainable.parameters().values()]
    stranger = CheckedOptimizer(step.policy, torch.optim.AdamW(copies, lr=1e-3), step.probe)
    with pytest.raises(WeightsError, match=r"The optimizer does not hold .* of the policy's"):
        stranger.take(1.0)
