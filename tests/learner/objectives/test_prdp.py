"""The PRDP loss against the paper's equations written as loops, and the identities they imply."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.trajectory import GroupScore
from learner.objectives import LogProbs
from learner.objectives.prdp import PAIR_WEIGHTINGS, STEP_REDUCTIONS, Prdp
from tests.scored_groups import pointwise


def _objective(
    kl_weight: float = 0.1,
    clip_range: float = math.inf,
    scale: float = 1.0,
    steps: str = "sum",
    pairs: str = "all",
) -> Prdp:
    return Prdp(kl_weight, clip_range, scale, STEP_REDUCTIONS[steps], PAIR_WEIGHTINGS[pairs])


def _group(seed: int, images: int, steps: int, spread: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
    """Log ratios now and of the old policy, and rewards with a tie."""
    generator = torch.Generator().manual_seed(seed)
    old = 0.1 * torch.randn(images, steps, dtype=torch.float64, generator=generator)
    now = old + spread * torch.randn(images, steps, dtype=torch.float64, generator=generator)
    rewards = 0.02 * torch.randn(images, dtype=torch.float64, generator=generator)
    rewards[images - 1] = rewards[0]
    return now, old, rewards


@dataclass(frozen=True)
class Result:
    """The loss of a group, and counts."""

    loss_sum: Tensor
    weight: float
    clipped: float
    tied: float
    pairs: float


def _apply(objective: Prdp, now: Tensor, old: Tensor, differences: Tensor) -> Result:
    """now, old: log ratios to a reference of log-prob 0."""
    score = GroupScore(np.zeros(len(now)), differences.numpy(), {}, ())
    loss = objective.loss(LogProbs(now, old, torch.zeros_like(old)), score, None)
    (clipped, counted), (tied, pairs) = loss.stats["clip_share"], loss.stats["tie_share"]
    assert counted == loss.weight
    assert loss.stats["tied_groups"] == (float(tied == pairs), 1.0)
    predicted = objective.step_reduction(objective.latent_scale * now.detach())
    assert loss.stats["log_ratio_mean"] == pytest.approx((float(predicted.sum()), len(now)))
    return Result(loss.sum, loss.weight, clipped, tied, pairs)


def _differences(rewards: Tensor) -> Tensor:
    return rewards[:, None] - rewards[None, :]


def _reduce(values: list[Tensor], how: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for value in values:
        total = total + value
    return total / len(values) if how == "mean" else total


def _slow(
    now: Tensor, old: Tensor, rewards: Tensor, objective: Prdp, steps: str, pairs: str
) -> tuple[Tensor, int, int]:
    """Equations (10) to (21), a pair and a step at a time: sum of losses, pairs counted, pairs clipped."""
    images, count = now.shape
    free_sums, held_sums = [], []
    for i in range(images):
        free, held = [], []
        for t in range(count):
            value, before = objective.latent_scale * now[i, t], objective.latent_scale * old[i, t]
            free.append(value)
            low, high = before - objective.clip_range, before + objective.clip_range
            held.append(low if value < low else high if value > high else value)
        free_sums.append(_reduce(free, steps))
        held_sums.append(_reduce(held, steps))
    total, counted, clipped = 0.0 * now.sum(), 0, 0
    for i, j in combinations(range(images), 2):
        if pairs == "untied" and rewards[i] == rewards[j]:
            continue
        target = (rewards[i] - rewards[j]) / objective.kl_weight
        loss = (free_sums[i] - free_sums[j] - target) ** 2
        held_loss = (held_sums[i] - held_sums[j] - target) ** 2
        total = total + (held_loss if held_loss > loss else loss)
        counted, clipped = counted + 1, clipped + int(held_loss > loss)
    return total, counted, clipped


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(2, 6),
    count=st.integers(1, 5),
    clip_range=st.sampled_from([1e-6, 5e-3, 0.02, math.inf]),
    scale=st.sampled_from([1.0, 256.0]),
    steps=st.sampled_from(["mean", "sum"]),
    pairs=st.sampled_from(["untied", "all"]),
)
def test_loss_and_gradient_are_those_of_the_equations(
    seed: int, images: int, count: int, clip_range: float, scale: float, steps: str, pairs: str
) -> None:
    now, old, rewards = _group(seed, images, count)
    objective = _objective(0.1, clip_range * scale, scale, steps, pairs)
    fast, slow = now.clone().requires_grad_(True), now.clone().requires_grad_(True)
    result = _apply(objective, fast, old, _differences(rewards))
    expected, counted, clipped = _slow(slow, old, rewards, objective, steps, pairs)
    torch.testing.assert_close(result.loss_sum, expected, rtol=1e-10, atol=1e-12)
    assert (result.weight, result.clipped) == (counted, clipped)
    assert (result.pairs, result.tied) == (images * (images - 1) // 2, 1)
    if counted:
        result.loss_sum.backward()
        expected.backward()
        torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-9, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6), st.sampled_from([1e-3, 0.02]))
def test_untied_mean_is_the_authors_printed_loss(seed: int, images: int, clip_range: float) -> None:
    """Appendix G: the mean over steps, and the mean over ordered pairs with r_i > r_j."""
    now, old, rewards = _group(seed, images, 4)
    result = _apply(_objective(0.1, clip_range, 1.0, "mean", "untied"), now, old, _differences(rewards))

    def errors(log_ratio: Tensor) -> Tensor:
        predicted = log_ratio.mean(1)
        return (predicted[:, None] - predicted[None] - _differences(rewards) / 0.1) ** 2

    better = (rewards[:, None] > rewards[None]).double()
    both = torch.maximum(
        errors(now), errors(torch.minimum(torch.maximum(now, old - clip_range), old + clip_range))
    )
    torch.testing.assert_close(result.loss_sum / result.weight, (better * both).sum() / better.sum())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from(["mean", "sum"]))
def test_identity_1_the_clip_cannot_act_on_the_policy_that_sampled(
    seed: int, images: int, steps: str
) -> None:
    _, old, rewards = _group(seed, images, 4)
    gradients = []
    for clip_range in (1e-6, math.inf):
        now = old.clone().requires_grad_(True)
        result = _apply(_objective(clip_range=clip_range, steps=steps), now, old, _differences(rewards))
        result.loss_sum.backward()
        assert result.clipped == 0
        gradients.append((result.loss_sum.detach(), now.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-12, atol=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_identity_2_the_loss_is_twice_the_unbiased_variance(seed: int, images: int) -> None:
    now, old, rewards = _group(seed, images, 3)
    result = _apply(_objective(), now, old, _differences(rewards))
    unexplained = now.sum(1) - rewards / 0.1
    torch.testing.assert_close(result.loss_sum / result.weight, 2 * unexplained.var(unbiased=True))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_identity_3_the_first_gradient_is_leave_one_out_reinforce(seed: int, images: int) -> None:
    _, old, rewards = _group(seed, images, 3)
    now = old.clone().requires_grad_(True)
    result = _apply(_objective(), now, old, _differences(rewards))
    (result.loss_sum / result.weight).backward()
    regularised = rewards - 0.1 * old.sum(1)
    for i in range(images):
        others = [float(regularised[j]) for j in range(images) if j != i]
        advantage = float(regularised[i]) - sum(others) / len(others)
        # REINFORCE climbs (1 / B) sum_i advantage_i grad log pi(trajectory i).
        expected = -(4 / 0.1) * advantage / images
        assert now.grad is not None
        assert now.grad[i].tolist() == pytest.approx([expected] * 3, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1e3, 1e3))
def test_identity_5_a_reward_shifted_for_the_whole_prompt_changes_nothing(seed: int, shift: float) -> None:
    now, old, rewards = _group(seed, 5, 3)
    losses = []
    for values in (rewards, rewards + shift):
        score = pointwise(values.numpy(), {}, ())
        losses.append(
            _apply(_objective(clip_range=0.02), now, old, torch.from_numpy(score.differences)).loss_sum
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("clip_range", [1e-6, math.inf])
def test_a_group_of_equal_rewards_has_no_weight_and_no_gradient(clip_range: float) -> None:
    now, old, _ = _group(0, 4, 3)
    now.requires_grad_(True)
    result = _apply(
        _objective(clip_range=clip_range, pairs="untied"), now, old, torch.zeros(4, 4, dtype=torch.float64)
    )
    result.loss_sum.backward()
    assert (result.weight, result.tied, result.pairs, result.clipped) == (0.0, 6, 6, 0)
    assert float(result.loss_sum.detach()) == 0.0
    assert now.grad is not None
    assert not now.grad.any()


def test_the_clip_is_chosen_per_pair_after_the_sum_over_steps() -> None:
    """One of two steps leaves the range; a PPO-like choice at each step would give another number."""
    old = torch.zeros(2, 2, dtype=torch.float64)
    now = torch.tensor([[0.5, -0.2], [0.0, 0.0]], dtype=torch.float64)
    differences = torch.tensor([[0.0, 0.1], [-0.1, 0.0]], dtype=torch.float64)
    objective = _objective(kl_weight=1.0, clip_range=0.3)
    # Free: 0.5 - 0.2 = 0.3, error 0.2. Clipped: 0.3 - 0.2 = 0.1, error 0. The pair takes the larger.
    result = _apply(objective, now, old, differences)
    assert float(result.loss_sum) == pytest.approx(0.2**2)
    assert result.clipped == 0
    # For a larger difference the clipped one is the larger; the step inside the range still has a gradient.
    leaf = now.clone().requires_grad_(True)
    result = _apply(objective, leaf, old, 3 * differences)
    assert float(result.loss_sum.detach()) == pytest.approx((0.1 - 0.3) ** 2)
    assert result.clipped == 1
    result.loss_sum.backward()
    assert leaf.grad is not None
    assert leaf.grad[0].tolist() == pytest.approx([0.0, 2 * (0.1 - 0.3)])
    per_step = torch.maximum((now[0] - 0.15) ** 2, (now[0].clamp(-0.3, 0.3) - 0.15) ** 2).sum()
    assert float(per_step) != pytest.approx(0.2**2, rel=0.1)


def test_any_antisymmetric_matrix_of_differences_is_taken() -> None:
    """A judge that compares two images need not be consistent: the matrix enters as it is."""
    now, old, rewards = _group(4, 3, 2)
    differences = _differences(rewards)
    cycle = torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]], dtype=torch.float64)
    objective = replace(_objective(), kl_weight=1.0)
    total = 0.0
    for i, j in combinations(range(3), 2):
        total += (float(now[i].sum() - now[j].sum()) - float((differences + cycle)[i, j])) ** 2
    assert float(_apply(objective, now, old, differences + cycle).loss_sum) == pytest.approx(total)
    assert np.isfinite(total)
