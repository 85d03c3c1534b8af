"""The micro-batched gradient is the gradient of one whole autograd graph, at a memory flat in T and B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.sampler import denoise
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.steps import Steps
from common.trajectory import separate_nodes
from learner.gradient import (
    TrajectoryTensors,
    accumulate_by_step,
    accumulate_gradient,
    evaluate_log_prob,
)
from tests.learner.support import double_policy, perturb, slow_log_prob
from tests.tiny_config import make_config

LORA = {"kind": "lora", "rank": 2, "alpha": 4}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("tiny_pipeline", {"policy": LORA}),
    ("tiny_pipeline_v", {"policy": LORA, "sampling.guidance_scale": 3.0}),
    ("tiny_pipeline_v", {"policy": {"kind": "full"}}),
    ("tiny_pipeline", {"policy": {"kind": "full"}, "sampling.guidance_scale": 3.0}),
]


class Case:
    """A double policy away from its reference, trajectories, and coefficients of both signs."""

    def __init__(self, policy: Policy, distribution: Steps, images: int = 3) -> None:
        self.policy, self.distribution = policy, distribution
        perturb(policy, 0.05)
        generator = torch.Generator().manual_seed(1)
        draws = len(distribution.stochastic_steps) + 1
        noise = torch.randn(images, draws, 4, 8, 8, dtype=torch.float64, generator=generator)
        condition = policy.embed("a red cat")
        self.latents = torch.stack(denoise(policy, distribution, noise, condition)[0], dim=1)
        nodes = torch.from_numpy(separate_nodes(images, distribution.num_steps)).long()
        self.group = TrajectoryTensors(self.latents.flatten(0, 1), nodes, condition)
        self.coefficients = torch.randn(images, draws - 1, dtype=torch.float64, generator=generator)
        self.chosen = torch.rand(images, draws - 1, generator=generator) < 0.6
        perturb(policy, 0.02, seed=3)

    def whole_graph(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of sum c log p as one vector, and log p."""
        parameters = list(self.policy.trainable.parameters().values())
        values = slow_log_prob(
            self.policy, self.policy.family, self.distribution, self.latents, self.group.condition
        )
        gradients = torch.autograd.grad((coefficients * values).sum(), parameters)
        return torch.cat([gradient.flatten() for gradient in gradients]), values.detach()

    def accumulated(self) -> Tensor:
        """The parameters' .grad as one vector, which is then cleared."""
        parameters = self.policy.trainable.parameters().values()
        gradients = [value.grad.flatten() for value in parameters if value.grad is not None]
        for value in parameters:
            value.grad = None
        return torch.cat(gradients)


def _case(request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]) -> Case:
    policy, _, distribution = double_policy(request.getfixturevalue(model), tmp_path, overrides)
    return Case(policy, distribution)


def _assert_equal(result: Tensor, expected: Tensor) -> None:
    assert float(expected.norm()) > 0
    assert float((result - expected).norm() / expected.norm()) < 1e-10


@pytest.mark.parametrize(("model", "overrides"), SETTINGS)
def test_gradient_equals_the_whole_graphs_for_any_micro_batch(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    expected, log_prob = case.whole_graph(case.coefficients)
    everything = torch.ones_like(case.chosen)
    for micro_batch in (1, 4, 1000):
        values = accumulate_gradient(
            case.policy, case.distribution, case.group, case.coefficients, everything, micro_batch
        )
        _assert_equal(case.accumulated(), expected)
        torch.testing.assert_close(values, log_prob, rtol=1e-10, atol=1e-12)
        assert not values.requires_grad


@pytest.mark.parametrize(("model", "overrides"), SETTINGS[1:2])
def test_only_the_chosen_items_pass(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    expected, log_prob = case.whole_graph(case.coefficients * case.chosen)
    seen: list[int] = []
    case.policy.family.unet.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[0]))
    values = accumulate_gradient(
        case.policy, case.distribution, case.group, case.coefficients, case.chosen, 3
    )
    _assert_equal(case.accumulated(), expected)
    torch.testing.assert_close(values, log_prob * case.chosen, rtol=1e-10, atol=1e-12)
    assert sum(seen) == 2 * int(case.chosen.sum())
    assert max(seen) == 6
    nothing = torch.zeros_like(case.chosen)
    accumulate_gradient(case.policy, case.distribution, case.group, case.coefficients, nothing, 3)
    assert all(value.grad is None for value in case.policy.trainable.parameters().values())


@pytest.mark.parametrize(("model", "overrides"), SETTINGS[2:3])
def test_gradients_add_up(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    expected, _ = case.whole_graph(case.coefficients)
    parts = (case.chosen, ~case.chosen)
    for part in parts:
        accumulate_gradient(case.policy, case.distribution, case.group, case.coefficients, part, 2)
    _assert_equal(case.accumulated(), expected)


@pytest.mark.parametrize(("model", "overrides"), SETTINGS)
def test_step_by_step_is_the_same_gradient_with_each_steps_norm(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    parameters = list(case.policy.trainable.parameters().values())
    for value in parameters:
        value.grad = torch.ones_like(value)
    values, norms = accumulate_by_step(
        case.policy, case.distribution, case.group, case.coefficients, 2, parameters
    )
    expected, log_prob = case.whole_graph(case.coefficients)
    _assert_equal(case.accumulated(), expected + 1)
    torch.testing.assert_close(values, log_prob, rtol=1e-10, atol=1e-12)
    for column in range(3):
        only = torch.zeros_like(case.coefficients)
        only[:, column] = case.coefficients[:, column]
        torch.testing.assert_close(norms[column], case.whole_graph(only)[0].norm(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("model", "overrides"), SETTINGS[1:2])
def test_log_probs_without_a_graph(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    _, expected = case.whole_graph(case.coefficients)
    values = evaluate_log_prob(case.policy, case.distribution, case.group, 2)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)
    assert not values.requires_grad


class LiveBytes:
    """Counts the bytes that autograd holds for backward passes: what activations cost, without noise."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def __enter__(self) -> LiveBytes:
        counter = self

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor = tensor
                counter.now += tensor.numel() * tensor.element_size()
                counter.peak = max(counter.peak, counter.now)

            def __del__(self) -> None:
                counter.now -= self.tensor.numel() * self.tensor.element_size()

        self._hooks = torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def _peak(pipeline: Path, tmp_path: Path, steps: int, images: int, micro_batch: int = 12) -> int:
    policy, distribution = load_policy(make_config(pipeline, tmp_path, {"sampling.steps": steps}))
    latents = torch.randn(images * (steps + 1), 4, 8, 8)
    nodes = torch.from_numpy(separate_nodes(images, steps)).long()
    group = TrajectoryTensors(latents, nodes, policy.embed("a cat"))
    coefficients = torch.ones(images, steps - 1, dtype=torch.float64)
    with LiveBytes() as live:
        accumulate_gradient(policy, distribution, group, coefficients, coefficients > 0, micro_batch)
    assert live.now == 0
    return live.peak


def test_peak_memory_is_flat_in_steps_and_images(tiny_pipeline: Path, tmp_path: Path) -> None:
    base = _peak(tiny_pipeline, tmp_path, steps=10, images=4)
    assert _peak(tiny_pipeline, tmp_path, steps=50, images=4) < 1.05 * base
    assert _peak(tiny_pipeline, tmp_path, steps=10, images=16) < 1.05 * base
    # The counter sees what it should: in one pass the same items hold three times as much.
    assert _peak(tiny_pipeline, tmp_path, steps=10, images=4, micro_batch=36) > 2.5 * base
