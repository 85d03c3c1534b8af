"""DDPO and GRPO against their formulas written as loops, and what ties them to PRDP."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config.objectives import (
    DdpoSection,
    DpokSection,
    GrpoSection,
    NftSection,
    PrdpSection,
    RebelSection,
)
from common.trajectory import GroupScore
from learner.objectives import LogProbs, Objective, statistic_names
from learner.objectives.ddpo import Ddpo
from learner.objectives.history import RewardHistory
from learner.objectives.prdp import Prdp
from learner.objectives.ratio import OFFSET
from learner.objectives.registry import OBJECTIVES, build_objective
from tests.scored_groups import pointwise

Scores = list[tuple[str, Any]]
SECTIONS = (
    PrdpSection(),
    RebelSection(),
    DdpoSection(),
    GrpoSection(),
    GrpoSection(kl_weight=0.1),
    DpokSection(),
)
UNCLIPPED = {"advantage_limit": 1e9, "divide_by_std": False, "clip": False}


def _log_probs(seed: int, images: int, steps: int, spread: float = 2e-4) -> tuple[Tensor, Tensor]:
    """Now and old, (B, T_s)."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(images, steps, dtype=torch.float64, generator=generator)
    return old + spread * torch.randn(images, steps, dtype=torch.float64, generator=generator), old


def _score(rewards: Any) -> GroupScore:
    return pointwise(np.asarray(rewards), {}, ())


def _slow_surrogate(
    now: Tensor, old: Tensor, advantages: list[float], clip_range: float
) -> tuple[Tensor, int]:
    total, clipped = torch.zeros((), dtype=torch.float64), 0
    for i, advantage in enumerate(advantages):
        for t in range(now.shape[1]):
            ratio = torch.exp(now[i, t] - old[i, t])
            free = -advantage * ratio
            inside = 1 - clip_range <= float(ratio.detach()) <= 1 + clip_range
            edge = 1 + clip_range if float(ratio.detach()) > 1 else 1 - clip_range
            held = -advantage * (ratio if inside else 0 * ratio + edge)
            clipped += bool(held > free)
            total = total + (held if held > free else free)
    return total, clipped


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 4), st.sampled_from(["ddpo", "grpo"]))
def test_loss_and_gradient_are_the_clipped_surrogates(seed: int, images: int, steps: int, kind: str) -> None:
    now, old = _log_probs(seed, images, steps)
    advantages = 2 * torch.randn(images, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sections = {"ddpo": DdpoSection(), "grpo": GrpoSection()}
    objective = build_objective(sections[kind], 256)
    fast, slow = (now.clone().requires_grad_(True) for _ in range(2))
    loss = objective.loss(LogProbs(fast, old, None), _score(np.zeros(images)), advantages)
    expected, clipped = _slow_surrogate(slow, old, advantages.tolist(), 1e-4)
    torch.testing.assert_close(loss.sum, expected, rtol=1e-12, atol=1e-12)
    assert loss.weight == images * steps
    assert loss.stats["clip_share"] == (clipped, images * steps)
    assert loss.stats["advantage_size"] == pytest.approx((sum(map(abs, advantages.tolist())), images))
    loss.sum.backward()
    expected.backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_objective_reports_what_it_declares(section: Any) -> None:
    now, old = _log_probs(0, 3, 2)
    objective: Objective = build_objective(section, 4)
    ref = old.clone() if objective.needs.reference else None
    scores = [("a cat", np.array([0.1, 0.5, 0.3]))]
    (advantages,), _ = objective.advantages(scores, RewardHistory())
    given_ = None if advantages is None else torch.tensor(advantages)
    loss = objective.loss(LogProbs(now, old, ref), _score(scores[0][1]), given_)
    assert tuple(loss.stats) == statistic_names(objective)
    assert all(metric.description for metric in objective.statistics)
    assert set(OBJECTIVES) == {one.kind for one in SECTIONS}


@pytest.mark.parametrize(
    ("section", "across_prompts"),
    [
        (DdpoSection(baseline="batch"), True),
        (DdpoSection(), True),
        (DdpoSection(baseline="group"), False),
        (GrpoSection(), False),
        (DpokSection(), True),
        (NftSection(), False),
    ],
)
def test_equal_rewards_say_exactly_nothing(section: Any, across_prompts: bool) -> None:
    objective = build_objective(section, 4)
    # Six times .1 has a mean that is not .1. Prompts may differ where they are not compared.
    scores = [("a cat", np.full(6, 0.1)), ("a dog", np.full(6, 0.1 if across_prompts else 0.7))]
    assert np.full(6, 0.1).mean() != 0.1
    found, _ = objective.advantages(scores, RewardHistory())
    assert not np.any(found)
    assert objective.needs.across_prompts == across_prompts


def _slow_ddpo(epochs: list[Scores], section: DdpoSection) -> list[list[list[float]]]:
    """PerPromptStatTracker of the authors' code, a reward at a time; or the mean of a batch or group."""
    buffers: dict[str, list[float]] = {}
    found = []
    for scores in epochs:
        everything = [float(value) for _, values in scores for value in values]
        for prompt, values in scores:
            buffers[prompt] = [*buffers.get(prompt, []), *values.tolist()][-section.history :]
        rows = []
        for prompt, values in scores:
            basis = everything
            if section.baseline == "prompt" and len(buffers[prompt]) >= section.history_minimum:
                basis = buffers[prompt]
            mean, spread = statistics.fmean(basis), statistics.pstdev(basis)
            if section.baseline == "group":
                mean = statistics.fmean(values.tolist())
                spread = statistics.pstdev(
                    [float(v) - statistics.fmean(own.tolist()) for _, own in scores for v in own]
                )
            row = [(float(v) - mean) / (spread + OFFSET) for v in values]
            rows.append([max(-section.advantage_limit, min(section.advantage_limit, a)) for a in row])
        found.append(rows)
    return found


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    baseline=st.sampled_from(["batch", "prompt", "group"]),
    limit=st.sampled_from([0.7, 5.0]),
    minimum=st.integers(2, 8),
)
def test_ddpos_advantages_are_the_authors(seed: int, baseline: Any, limit: float, minimum: int) -> None:
    section = DdpoSection(baseline=baseline, advantage_limit=limit, history=9, history_minimum=minimum)
    objective, history = Ddpo(section), RewardHistory()
    draw = np.random.default_rng(seed)
    prompts = ["a cat", "the sea", "a dog"]
    epochs = [
        [(prompts[draw.integers(3)], draw.normal(loc=draw.normal(), size=3)) for _ in range(4)]
        for _ in range(4)
    ]
    for scores, expected in zip(epochs, _slow_ddpo(epochs, section), strict=True):
        advantages, history = objective.advantages(scores, history)
        for one, row in zip(advantages, expected, strict=True):
            np.testing.assert_allclose(one, row, rtol=1e-9, atol=1e-9)
    assert bool(history.rewards) == (baseline == "prompt")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_grpos_advantages_have_mean_0_and_deviation_1_in_each_group(seed: int, images: int) -> None:
    rewards = np.random.default_rng(seed).normal(size=images)
    grpo = build_objective(GrpoSection(), 1)
    (advantages, tied), history = grpo.advantages(
        [("a cat", rewards), ("the sea", np.full(images, 0.3))], RewardHistory()
    )
    assert advantages is not None
    assert tied is not None
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(advantages.std()) == pytest.approx(1.0, rel=1e-3)
    assert not tied.any()
    assert not history.rewards


def _gradient(objective: Objective, old: Tensor, ref: Tensor | None, rewards: Any) -> Tensor:
    """Of the mean loss of one group, at theta = old."""
    (advantages,), _ = objective.advantages([("a cat", rewards)], RewardHistory())
    now = old.clone().requires_grad_(True)
    given_ = None if advantages is None else torch.tensor(advantages)
    loss = objective.loss(LogProbs(now, old, ref), _score(rewards), given_)
    (gradient,) = torch.autograd.grad(loss.sum / loss.weight, now)
    return gradient


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4))
def test_at_version_0_they_are_prdp_up_to_a_factor(seed: int, images: int, steps: int) -> None:
    """Identity 3: PRDP's gradient is -4/beta x leave-one-out REINFORCE, whose advantages are B / (B - 1)
    times the deviations from the group's mean. The reference is the old policy."""
    _, old = _log_probs(seed, images, steps)
    rewards, beta = np.random.default_rng(seed).normal(size=images), 0.1
    prdp = build_objective(PrdpSection(kl_weight=beta, pair_weighting="all"), 1)
    expected = _gradient(prdp, old, old, rewards) * (beta / 4) * (images - 1) / images
    grouped = build_objective(DdpoSection(baseline="group", **UNCLIPPED), 1)
    grpo = build_objective(GrpoSection(**UNCLIPPED), 1)
    for objective in (grouped, grpo):
        torch.testing.assert_close(_gradient(objective, old, None, rewards), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_away_from_the_reference_prdp_is_grpo_on_the_regularised_reward(seed: int, images: int) -> None:
    _, old = _log_probs(seed, images, 3)
    rewards, beta = np.random.default_rng(seed).normal(size=images), 0.1
    ref = old - 0.5 * torch.randn(
        old.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    prdp = Prdp.build(PrdpSection(kl_weight=beta, pair_weighting="all"), 1)
    regularised = rewards - beta * (old - ref).mean(1).numpy()
    expected = _gradient(prdp, old, ref, rewards) * (beta / 4) * (images - 1) / images
    grpo = build_objective(GrpoSection(**UNCLIPPED), 1)
    torch.testing.assert_close(_gradient(grpo, old, None, regularised), expected, rtol=1e-9, atol=1e-12)


def test_without_advantages_it_says_so() -> None:
    now, old = _log_probs(0, 2, 2)
    with pytest.raises(ValueError, match="advantages"):
        build_objective(GrpoSection(), 1).loss(LogProbs(now, old, None), _score(np.zeros(2)), None)
    assert GrpoSection(clip=False).clip_per_element(16) == math.inf
    assert PrdpSection(latent_reduction="sum", clip_range=0.16).clip_per_element(16) == pytest.approx(0.01)
