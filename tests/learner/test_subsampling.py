"""A part of the terms gives the whole gradient on average."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.trajectory import NoiseKey, TrajectoryGroup, tree_nodes
from learner.gradient import Wave
from learner.objectives import LogProbs
from learner.subsampling import draw, inclusion_probabilities, thin
from tests.learner.support import (
    double_policy,
    make_learner,
    perturb,
    prdp,
    sample_double,
    scored,
    slow_log_prob,
    whole,
)
from tests.scored_groups import make_group

SIZES = st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.5, 1.0, 3.0, 50.0]), min_size=1, max_size=12)
SHARES = st.floats(0.05, 1.0)
START = 0.3141592653


def slow_probabilities(sizes: list[float], share: float) -> list[float]:
    """min(1, 10^x size), by bisection of x."""
    wanted = share * sum(size > 0 for size in sizes)
    low, high = -14.0, 14.0
    for _ in range(100):
        middle = (low + high) / 2
        is_less = sum(min(1.0, 10**middle * size) for size in sizes) < wanted
        low, high = (middle, high) if is_less else (low, middle)
    return [min(1.0, 10**high * size) for size in sizes]


def slow_draw(probabilities: list[float], start: float) -> list[bool]:
    """A point a unit, from `start` before 1, 2, ...: who has one."""
    drawn, end = [], start
    for probability in probabilities:
        begin, end = end, end + probability
        drawn.append(any(begin < point <= end for point in range(1, len(probabilities) + 2)))
    return drawn


@settings(max_examples=50, deadline=None)
@given(SIZES, SHARES)
def test_probabilities_are_proportional_but_at_most_one(sizes: list[float], share: float) -> None:
    found = inclusion_probabilities(torch.tensor(sizes, dtype=torch.float64), share)
    assert found.tolist() == pytest.approx(slow_probabilities(sizes, share), rel=1e-6, abs=1e-12)
    assert float(found.sum()) == pytest.approx(share * sum(size > 0 for size in sizes), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(SIZES, SHARES)
def test_every_item_passes_as_often_as_its_probability_says(sizes: list[float], share: float) -> None:
    probabilities = inclusion_probabilities(torch.tensor(sizes, dtype=torch.float64), share)
    starts = [(number + 0.5) / 64 for number in range(64)]
    drawn = torch.stack([draw(probabilities, start) for start in starts])
    torch.testing.assert_close(drawn.double().mean(0), probabilities, rtol=0, atol=1.01 / 64)
    assert drawn[:, probabilities == 1].all()
    assert ((drawn.sum(1) - probabilities.sum()).abs() < 1 + 1e-9).all()
    assert draw(probabilities, START).tolist() == slow_draw(probabilities.tolist(), START)


class Terms:
    """Two groups, one of them a tree, with coefficients of very unequal sizes and a made-up gradient of each
    transition."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        trees = [((1, 2), 8), ((), 4)]
        self.groups = [self._group(number, *tree) for number, tree in enumerate(trees)]
        self.wave = Wave.of(self.groups, torch.device("cpu"))
        self.gains = torch.tensor([0.4, 0.5, 1.0, 2.0], dtype=torch.float64)
        transitions = self.wave.transitions.shape[1]
        self.coefficients = torch.randn(transitions, dtype=torch.float64, generator=generator) ** 3
        self.gradients = torch.randn(transitions, 5, dtype=torch.float64, generator=generator)

    @staticmethod
    def _group(seed: int, branch_at: tuple[int, ...], images: int) -> TrajectoryGroup:
        group = make_group(seed, images).trajectory
        return replace(group, nodes=tree_nodes(images, len(group.times), branch_at))

    def thinned(self, share: float, update: int) -> Tensor:
        starts = [group.noise.uniform(update) for group in self.groups]
        steps = self.wave.items[2][self.wave.transitions[0]]
        return thin(self.wave, self.coefficients, self.gains[steps], share, starts)

    def estimates(self, share: float, draws: int) -> Tensor:
        """Of the gradient, (draws, 5)."""
        return torch.stack([self.thinned(share, update) @ self.gradients for update in range(draws)])


def test_the_mean_over_draws_is_the_gradient_and_more_terms_vary_less() -> None:
    terms, draws = Terms(), 300
    exact = terms.coefficients @ terms.gradients
    spreads = []
    for share in (0.2, 0.4, 0.7):
        estimates = terms.estimates(share, draws)
        error = (estimates.mean(0) - exact) / (estimates.std(0) / math.sqrt(draws))
        assert float(error.abs().max()) < 4.5
        spreads.append(float(estimates.var(0).sum()))
    assert spreads[0] > 1.5 * spreads[1] > 2.25 * spreads[2] > 0
    # Draws of equal probability, each term by itself, would vary by sum of |c g|^2 (1 / p - 1).
    squares = (terms.coefficients[:, None] * terms.gradients).square().sum()
    assert spreads[1] < 0.5 * float(squares) * (1 / 0.4 - 1)


def test_all_of_the_terms_are_the_gradient_to_the_bit() -> None:
    terms = Terms()
    assert torch.equal(terms.thinned(1.0, 0), terms.coefficients)


def test_a_share_of_each_groups_items_passes_with_all_their_transitions() -> None:
    terms = Terms()
    items = terms.wave.transitions[0]
    for update in range(20):
        kept = terms.thinned(0.5, update) != 0
        for place in terms.wave.places:
            own = items[place].unique()
            passing = torch.isin(own, items[kept])
            assert abs(int(passing.sum()) - 0.5 * len(own)) < 1
        assert torch.equal(kept, torch.isin(items, items[kept]))


def test_draws_belong_to_group_and_update_and_are_no_images_noise() -> None:
    key = NoiseKey(1, "train", 2, 3)
    others = [replace(key, run_seed=2), replace(key, epoch=3), replace(key, prompt_index=4)]
    draws = [key.uniform(0), key.uniform(1), *(other.uniform(0) for other in others)]
    assert len(set(draws)) == 5
    assert key.uniform(0) == draws[0]
    assert 0.45 < np.mean([key.uniform(update) for update in range(1000)]) < 0.55


def test_the_learner_passes_what_is_drawn_and_weighs_it(tiny_pipeline_v: Path, tmp_path: Path) -> None:
    policy, reference, steps = double_policy(
        tiny_pipeline_v, tmp_path, {"sampling.steps": 4, "sampling.guidance_scale": 3.0}
    )
    perturb(policy, 0.02)
    learner = make_learner(policy, steps, term_share=0.4, updates=2, step_norms_every=0)
    stamp = learner.publish().stamp
    expected, passing = [torch.zeros_like(value) for value in learner.parameters.values()], 0
    groups = []
    for seed, rewards in enumerate(([0.1, 0.4, 0.2], [0.3, 0.5, -0.2])):
        group = sample_double(policy, reference, steps, stamp, "a cat", 3, seed)
        groups.append(scored(group, rewards))
        now = torch.from_numpy(group.log_prob).requires_grad_(True)
        log_probs = LogProbs(now, now.detach(), now.detach() - torch.from_numpy(group.log_ratio))
        (c,) = torch.autograd.grad(prdp().loss(log_probs, groups[-1].score, None).sum, now)
        # Items of a group are ordered by step, then by image.
        gains = torch.tensor(steps.gains, dtype=torch.float64)[list(steps.stochastic_steps)]
        sizes = (c.abs() * gains).T.flatten().tolist()
        probabilities = slow_probabilities(sizes, 0.4)
        drawn = slow_draw(probabilities, group.noise.uniform(0))
        factors = [is_drawn / p for is_drawn, p in zip(drawn, probabilities, strict=True)]
        passing += sum(drawn)
        values = slow_log_prob(policy, policy.family, steps, whole(group), policy.embed("a cat"))
        total = (c * torch.tensor(factors, dtype=torch.float64).view(3, 3).T * values).sum()
        gradients = torch.autograd.grad(total, list(learner.parameters.values()))
        expected = [before + now for before, now in zip(expected, gradients, strict=True)]
    learner.accumulate(groups)
    assert 6 <= passing <= 8
    for value, gradient in zip(learner.parameters.values(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-7, atol=1e-9 * float(gradient.norm()))
    # Guidance passes twice: 18 items without a graph, then those that are drawn.
    first, second = learner.finish_update(), learner.repeat_update()
    assert first.passes == 2 * (18 + 3 * passing)
    assert 2 * (18 + 3 * 6) <= second.passes <= 2 * (18 + 3 * 8)
    assert first.log_ratio_mismatch < 1e-12
