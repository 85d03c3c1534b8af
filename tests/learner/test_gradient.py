"""The micro-batched gradient is the gradient of one whole autograd graph."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.model.policy import Policy
from common.model.steps import Steps
from common.trajectory import PolicyStamp, TrajectoryGroup
from learner.gradient import GradientEngine, Wave
from learner.parallel import Single
from tests.learner.support import double_policy, make_engine, perturb, sample_double, slow_log_prob, whole

LORA = {"kind": "lora", "rank": 2, "alpha": 4}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("tiny_pipeline", {"policy": LORA}),
    ("tiny_pipeline_v", {"policy": LORA, "sampling.guidance_scale": 3.0}),
    ("tiny_pipeline_v", {"policy": {"kind": "full"}}),
    ("tiny_pipeline", {"policy": {"kind": "full"}, "sampling.guidance_scale": 3.0}),
]
every_setting = pytest.mark.parametrize(("model", "overrides"), SETTINGS)
STAMP = PolicyStamp(0, "", "run")


class Case:
    """A double policy away from its reference, a wave of unequal groups, coefficients of both signs."""

    def __init__(self, policy: Policy, steps: Steps) -> None:
        self.policy, self.steps = policy, steps
        perturb(policy, 0.05)
        self.groups = [
            sample_double(policy, policy, steps, STAMP, prompt, images, seed=seed)
            for seed, (prompt, images) in enumerate((("a red cat", 3), ("the sea", 2)))
        ]
        perturb(policy, 0.02, seed=3)
        generator = torch.Generator().manual_seed(1)
        self.coefficients = [
            torch.randn(group.log_prob.shape, dtype=torch.float64, generator=generator)
            for group in self.groups
        ]
        self.wave = Wave.of(self.groups, torch.device("cpu"))
        self.sums = self.wave.sums(self.coefficients)
        self.chosen = torch.nonzero(torch.rand(self.wave.size, generator=generator) < 0.6)[:, 0]
        self.everything = torch.arange(self.wave.size)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.policy.trainable.parameters().values())

    def engine(self, micro_batch: int) -> GradientEngine:
        return make_engine(self.policy, self.steps, micro_batch)

    def whole_graph(self, coefficients: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Gradient of sum c log p over all groups as one vector, and log p by group."""
        values = [self._slow(group) for group in self.groups]
        total = torch.stack([(c * value).sum() for c, value in zip(coefficients, values, strict=True)]).sum()
        gradients = torch.autograd.grad(total, self.parameters)
        return torch.cat([gradient.flatten() for gradient in gradients]), [value.detach() for value in values]

    def _slow(self, group: TrajectoryGroup) -> Tensor:
        condition = self.policy.embed(group.prompt)
        return slow_log_prob(self.policy, self.policy.family, self.steps, whole(group), condition)

    def masked(self, chosen: Tensor) -> list[Tensor]:
        """The coefficients of the chosen items, 0 elsewhere."""
        mask = torch.zeros(self.wave.size, dtype=torch.bool)
        mask[chosen] = True
        return [c * mask[place] for c, place in zip(self.coefficients, self.wave.places, strict=True)]

    def accumulated(self) -> Tensor:
        """The parameters' .grad as one vector, which is then cleared."""
        gradients = [value.grad.flatten() for value in self.parameters if value.grad is not None]
        for value in self.parameters:
            value.grad = None
        return torch.cat(gradients)


def _case(request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]) -> Case:
    policy, _, steps = double_policy(request.getfixturevalue(model), tmp_path, overrides)
    return Case(policy, steps)


def _assert_equal(result: Tensor, expected: Tensor) -> None:
    assert float(expected.norm()) > 0
    assert float((result - expected).norm() / expected.norm()) < 1e-10


@every_setting
def test_gradient_equals_the_whole_graphs_for_any_micro_batch(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    expected, log_probs = case.whole_graph(case.coefficients)
    for micro_batch in (1, 4, 100):
        engine = case.engine(micro_batch)
        values = engine.accumulate(case.wave, case.sums, case.everything)
        _assert_equal(case.accumulated(), expected)
        assert not values.requires_grad
        without_graph = engine.evaluate(case.wave)
        for by_group in (case.wave.by_group(values), without_graph):
            for value, slow in zip(by_group, log_probs, strict=True):
                torch.testing.assert_close(value, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("model", "overrides"), SETTINGS[1:2])
def test_chosen_items_pass_in_micro_batches_of_one_size(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    expected, log_probs = case.whole_graph(case.masked(case.chosen))
    seen: list[int] = []
    network: Any = case.policy.family.network
    network.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[0]))
    engine = case.engine(4)
    values = engine.accumulate(case.wave, case.sums, case.chosen)
    _assert_equal(case.accumulated(), expected)
    slow = torch.zeros_like(case.sums)
    for place, value in zip(case.wave.places, log_probs, strict=True):
        slow[place] = value
    slow[~torch.isin(case.everything, case.chosen)] = 0
    torch.testing.assert_close(values, slow, rtol=1e-10, atol=1e-12)
    assert len(case.chosen) % 4
    assert seen == [8] * -(-len(case.chosen) // 4)  # guidance passes each item twice
    nothing = torch.zeros(0, dtype=torch.int64)
    assert not engine.accumulate(case.wave, case.sums, nothing).any()
    assert all(value.grad is None for value in case.parameters)


@pytest.mark.parametrize(("model", "overrides"), SETTINGS[2:3])
def test_gradients_add_up(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    expected, _ = case.whole_graph(case.coefficients)
    for number, group in enumerate(case.groups):
        wave = Wave.of([group], torch.device("cpu"))
        sums = wave.sums(case.coefficients[number : number + 1])
        case.engine(2).accumulate(wave, sums, torch.arange(wave.size))
    _assert_equal(case.accumulated(), expected)


@pytest.mark.parametrize(("model", "overrides"), SETTINGS[1:3])
def test_step_by_step_is_the_same_gradient_with_each_steps_norm(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    case = _case(request, tmp_path, model, overrides)
    for value in case.parameters:
        value.grad = torch.ones_like(value)
    values, norms = case.engine(2).accumulate_by_step(case.wave, case.sums, case.everything, case.parameters)
    expected, _ = case.whole_graph(case.coefficients)
    _assert_equal(case.accumulated(), expected + 1)
    torch.testing.assert_close(
        torch.cat([value.flatten() for value in case.wave.by_group(values)]),
        torch.cat([value.flatten() for value in case.engine(2).evaluate(case.wave)]),
        rtol=1e-10,
        atol=1e-12,
    )
    for column in range(3):
        only = [torch.zeros_like(c) for c in case.coefficients]
        for part, c in zip(only, case.coefficients, strict=True):
            part[:, column] = c[:, column]
        torch.testing.assert_close(norms[column], case.whole_graph(only)[0].norm(), rtol=1e-10, atol=0)


def _tree(group: TrajectoryGroup) -> TrajectoryGroup:
    """The group with its second image equal to the first up to position 2, then on its own: shared rows."""
    nodes = group.nodes.copy()
    nodes[1, :3] = nodes[0, :3]
    return replace(group, nodes=nodes)


def test_shared_steps_pass_once_with_the_sum_of_their_leaves(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy, _, steps = double_policy(tiny_pipeline, tmp_path, {"sampling.steps": 4})
    case = Case(policy, steps)
    case.groups = [_tree(case.groups[0]), case.groups[1]]
    wave = Wave.of(case.groups, torch.device("cpu"))
    # Two of three stochastic steps are shared by two images, and the latent that the third begins with.
    assert wave.size == case.wave.size - 3
    assert wave.transitions.shape[1] == case.wave.size - 2
    engine = case.engine(5)
    values = wave.by_group(engine.accumulate(wave, wave.sums(case.coefficients), torch.arange(wave.size)))
    expected, log_probs = case.whole_graph(case.coefficients)
    _assert_equal(case.accumulated(), expected)
    for value, slow in zip(values, log_probs, strict=True):
        torch.testing.assert_close(value, slow, rtol=1e-10, atol=1e-12)


def test_what_cancels_but_for_rounding_is_no_coefficient(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy, _, steps = double_policy(tiny_pipeline, tmp_path, {"sampling.steps": 4})
    case = Case(policy, steps)
    case.groups = [_tree(case.groups[0]), case.groups[1]]
    wave = Wave.of(case.groups, torch.device("cpu"))
    third = torch.tensor([0.1, 0.2, 0.3]).double()
    case.coefficients[0][0], case.coefficients[0][1] = third, 1e-9 - (third + 0.7) + 0.7
    case.coefficients[0][1, 0] = -(third[0] + 0.7) + 0.7
    sums = wave.sums(case.coefficients)
    shared = wave.places[0][0]
    assert sums[shared[0]] == 0
    assert float(sums[shared[1]]) == pytest.approx(1e-9, rel=1e-5)
    assert int((sums == 0).sum()) == 1
    assert sorted({*range(wave.size)} - {*wave.items_of(sums != 0).tolist()}) == [
        int(wave.transitions[0, shared[0]])
    ]


class Lockstep(Single):
    """Other ranks have more work: `spare` passes more."""

    def __init__(self, spare: int) -> None:
        self.spare = spare
        self.last: list[bool] = []

    def most(self, passes: int) -> int:
        return passes + self.spare

    def micro_batch(self, is_last: bool) -> Any:
        self.last.append(is_last)
        return nullcontext()


def test_passes_for_other_ranks_add_nothing(tiny_pipeline_v: Path, tmp_path: Path) -> None:
    overrides = {"policy": LORA, "sampling.guidance_scale": 3.0}
    policy, _, steps = double_policy(tiny_pipeline_v, tmp_path, overrides)
    case = Case(policy, steps)
    expected, _ = case.whole_graph(case.coefficients)
    seen: list[int] = []
    network: Any = policy.family.network
    network.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[0]))
    lockstep = Lockstep(2)
    engine = make_engine(policy, steps, 4, lockstep)
    engine.accumulate(case.wave, case.sums, case.everything)
    _assert_equal(case.accumulated(), expected)
    own = -(-case.wave.size // 4)
    assert seen == [8] * (own + 2)
    assert lockstep.last == [False] * (own + 1) + [True]
    assert engine.evaluate(None) == []
    assert len(engine.accumulate(None, torch.zeros(0), torch.zeros(0, dtype=torch.int64))) == 0
    assert seen == [8] * (own + 6)
    assert not case.accumulated().any()
