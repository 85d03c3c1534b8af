"""DPOK against its formula written as a loop, and what ties it to DDPO. Its KL: test_reference_kl.py."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.objectives import DdpoSection, DpokSection
from learner.objectives import LogProbs
from learner.objectives.history import RewardHistory
from learner.objectives.registry import build_objective
from tests.scored_groups import pointwise

SCORE = pointwise(np.zeros(3), {}, ())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-4, 1e-3]))
def test_loss_and_gradient_are_those_of_the_clipped_ratio_alone(seed: int, clip_range: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, move = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    now = (old + 5e-4 * move).requires_grad_(True)
    advantages = torch.randn(3, dtype=torch.float64, generator=generator)
    dpok = build_objective(DpokSection(clip_range=clip_range, kl_weight=0.25), 16)
    loss = dpok.loss(LogProbs(now, old, None), SCORE, advantages)
    (gradient,) = torch.autograd.grad(loss.sum, now)
    total, outside = 0.0, 0
    for i in range(3):
        for t in range(4):
            ratio = math.exp(float(now.detach()[i, t]) - float(old[i, t]))
            held = min(max(ratio, 1 - clip_range), 1 + clip_range)
            total -= float(advantages[i]) * held
            outside += held != ratio
            expected = -float(advantages[i]) * ratio if held == ratio else 0.0
            assert float(gradient[i, t]) == pytest.approx(expected, rel=1e-9)
    assert float(loss.sum.detach()) == pytest.approx(total, rel=1e-12)
    assert (loss.weight, loss.stats["clip_share"]) == (12, (outside, 12))
    assert loss.kl_weights is not None
    assert torch.equal(loss.kl_weights, torch.full((3, 4), 0.25, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_the_value_is_the_mean_of_what_is_remembered_of_the_prompt(seed: int, minimum: int) -> None:
    section = DpokSection(reward_weight=2.0, history=7, history_minimum=min(minimum, 7))
    dpok, history = build_objective(section, 16), RewardHistory()
    draw, buffers = np.random.default_rng(seed), {"a cat": [], "the sea": []}
    for _ in range(3):
        prompts = [["a cat", "the sea"][draw.integers(2)] for _ in range(3)]
        scores = [(prompt, draw.normal(size=3)) for prompt in prompts]
        for prompt, rewards in scores:
            buffers[prompt] = [*buffers[prompt], *rewards.tolist()][-7:]
        everything = [value for _, rewards in scores for value in rewards.tolist()]
        advantages, history = dpok.advantages(scores, history)
        for (prompt, rewards), found in zip(scores, advantages, strict=True):
            known = buffers[prompt] if len(buffers[prompt]) >= section.history_minimum else everything
            np.testing.assert_allclose(
                found, 2.0 * (rewards - statistics.fmean(known)), rtol=1e-9, atol=1e-12
            )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_at_the_old_policy_its_policy_gradient_is_ddpos(seed: int) -> None:
    """DDPO with rewards centred by the prompt's and neither divided nor limited, times w_r."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    scores = [("a cat", torch.randn(3, generator=generator).double().numpy())]
    gradients = []
    for section in (
        DpokSection(kl_weight=0.0, history_minimum=2),
        DdpoSection(history_minimum=2, divide_by_std=False, advantage_limit=1e9),
    ):
        objective = build_objective(section, 16)
        (advantages,), _ = objective.advantages(scores, RewardHistory())
        leaf = old.clone().requires_grad_(True)
        loss = objective.loss(LogProbs(leaf, old, None), SCORE, torch.tensor(advantages))
        assert loss.kl_weights is None
        assert not objective.needs.kl
        gradients.append(torch.autograd.grad(loss.sum, leaf)[0])
    torch.testing.assert_close(gradients[0], 10.0 * gradients[1], rtol=1e-12, atol=1e-12)


def test_extremes_keep_the_kl_of_their_images_only() -> None:
    dpok = build_objective(DpokSection(extremes=1), 16)
    old = torch.zeros(3, 2, dtype=torch.float64)
    score = pointwise(np.array([0.2, 0.1, 0.3]), {}, ())
    loss = dpok.loss(LogProbs(old, old, None), score, torch.ones(3, dtype=torch.float64))
    assert dpok.needs.kl
    assert loss.kl_weights is not None
    assert loss.kl_weights.tolist() == [[0.0, 0.0], [0.01, 0.01], [0.01, 0.01]]
    known = torch.tensor([[True, True], [True, False], [True, True]])
    with_kl = loss.with_kl(torch.tensor([[9.0, 9.0], [1.0, 9.0], [2.0, 3.0]], dtype=torch.float64), known)
    assert with_kl.stats["kl"] == (6.0, 3.0)
    assert float(with_kl.sum) == pytest.approx(float(loss.sum) + 0.06)
