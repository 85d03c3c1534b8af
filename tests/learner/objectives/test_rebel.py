"""REBEL against its equation written as a loop, and what ties it to PRDP."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config.objectives import PrdpSection, RebelSection
from common.trajectory import GroupScore
from learner.objectives import LogProbs, Loss
from learner.objectives.registry import build_objective
from tests.scored_groups import pointwise

ELEMENTS = 16


def _group(seed: int, images: int, steps: int) -> tuple[Tensor, Tensor, Tensor, GroupScore]:
    """Log-probs now, of the old policy and of the reference, (B, T_s), and rewards with a tie."""
    generator = torch.Generator().manual_seed(seed)
    now, old, ref = 0.1 * torch.randn(3, images, steps, dtype=torch.float64, generator=generator)
    rewards = torch.randn(images, dtype=torch.float64, generator=generator)
    rewards[-1] = rewards[0]
    return now, old, ref, pointwise(rewards.numpy(), {}, ())


def _differentiated(
    section: Any, now: Tensor, old: Tensor, ref: Tensor, score: GroupScore
) -> tuple[Loss, Tensor]:
    leaf = now.clone().requires_grad_(True)
    loss = build_objective(section, ELEMENTS).loss(LogProbs(leaf, old, ref), score, None)
    return loss, torch.autograd.grad(loss.sum, leaf)[0]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(2, 5),
    latent=st.sampled_from(["mean", "sum"]),
    reduction=st.sampled_from(["mean", "sum"]),
    pairs=st.sampled_from(["untied", "all"]),
)
def test_loss_and_gradient_are_those_of_the_equation(
    seed: int, images: int, latent: Any, reduction: Any, pairs: Any
) -> None:
    now, old, ref, score = _group(seed, images, 3)
    eta = 0.25
    section = RebelSection(
        kl_weight=1 / eta, latent_reduction=latent, step_reduction=reduction, pair_weighting=pairs
    )
    loss, gradient = _differentiated(section, now, old, ref, score)
    factor = (ELEMENTS if latent == "sum" else 1) / (3 if reduction == "mean" else 1)
    slow = now.clone().requires_grad_(True)
    total, counted = torch.zeros((), dtype=torch.float64), 0
    for i, j in combinations(range(images), 2):
        if pairs == "untied" and score.rewards[i] == score.rewards[j]:
            continue
        moved = [factor * sum(slow[k, t] - old[k, t] for t in range(3)) for k in (i, j)]
        total = total + ((moved[0] - moved[1]) / eta - (score.rewards[i] - score.rewards[j])) ** 2
        counted += 1
    assert loss.weight == counted
    torch.testing.assert_close(loss.sum / eta**2, total, rtol=1e-10, atol=1e-12)
    if counted:
        (expected,) = torch.autograd.grad(total, slow)
        torch.testing.assert_close(gradient / eta**2, expected, rtol=1e-9, atol=1e-10)
    moves = factor * (now - old).sum(1).abs()
    assert loss.stats["old_log_ratio_size"] == pytest.approx((float(moves.sum()), images))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_identity_6_it_is_unclipped_prdp_whose_reward_is_regularised(seed: int, images: int) -> None:
    """PRDP on r is REBEL on r - beta log(pi_old/pi_ref); with old = ref they are one."""
    now, old, ref, score = _group(seed, images, 3)
    kept: dict[str, Any] = {"kl_weight": 0.3, "step_reduction": "sum", "pair_weighting": "all"}
    prdp = PrdpSection(clip=False, latent_reduction="sum", **kept)
    regularised = score.rewards - 0.3 * ELEMENTS * (old - ref).sum(1).numpy()
    for base, rewards in ((ref, regularised), (old, score.rewards)):
        expected, wanted = _differentiated(prdp, now, old, base, score)
        other = pointwise(np.asarray(rewards), {}, ())
        loss, gradient = _differentiated(RebelSection(**kept), now, old, base, other)
        torch.testing.assert_close(loss.sum, expected.sum, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


def test_it_asks_for_no_reference() -> None:
    now, old, _, score = _group(0, 3, 2)
    rebel = build_objective(RebelSection(), ELEMENTS)
    assert not rebel.needs.reference
    assert rebel.loss(LogProbs(now, old, None), score, None).weight == 3
    assert RebelSection().clip_per_element(ELEMENTS) == float("inf")
