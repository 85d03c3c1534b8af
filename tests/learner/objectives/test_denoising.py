"""RWR, RAFT and DiffusionNFT against their formulas written as loops, and what ties them together."""

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

from common.config.objectives import NftSection, RaftSection, RwrSection
from common.trajectory import GroupScore
from learner.objectives import statistic_names
from learner.objectives.denoising import AWAY, OLD, REFERENCE, TOWARDS, Mirror, WeightedDenoising
from learner.objectives.history import RewardHistory
from learner.objectives.nft import Nft
from learner.objectives.registry import DENOISING, build_objective
from tests.scored_groups import pointwise

SECTIONS = (RwrSection(), RwrSection(weighting="sparse"), RaftSection(), NftSection())
reward_lists = st.lists(st.integers(-4, 4).map(lambda value: value / 4), min_size=2, max_size=9)


def _score(rewards: Any) -> GroupScore:
    return pointwise(np.asarray(rewards, dtype=np.float64), {}, ())


def _shares(section: Any, rewards: list[float]) -> list[float]:
    objective: Any = build_objective(section, 4)
    weights = objective.image_weights(_score(rewards), None)
    assert not weights.away.any()
    assert not weights.reference.any()
    assert weights.weight == 1.0
    found: list[float] = weights.towards.tolist()
    return found


@settings(max_examples=40, deadline=None)
@given(reward_lists, st.floats(0.05, 3.0), st.floats(0.05, 1.0))
def test_shares_are_softmax_or_those_above_the_threshold(
    rewards: list[float], temperature: float, kept_share: float
) -> None:
    total = sum(math.exp(reward / temperature) for reward in rewards)
    soft = [math.exp(reward / temperature) / total for reward in rewards]
    assert _shares(RwrSection(temperature=temperature), rewards) == pytest.approx(soft, rel=1e-9)
    threshold = sorted(rewards, reverse=True)[max(1, round(kept_share * len(rewards))) - 1]
    above = [reward >= threshold for reward in rewards]
    sparse = _shares(RwrSection(weighting="sparse", kept_share=kept_share), rewards)
    assert sparse == pytest.approx([one / sum(above) for one in above])


@settings(max_examples=40, deadline=None)
@given(reward_lists)
def test_raft_is_rwr_at_temperature_0_and_sparse_rwr_of_one_image(rewards: list[float]) -> None:
    raft = _shares(RaftSection(), rewards)
    best = [reward == max(rewards) for reward in rewards]
    assert raft == pytest.approx([one / sum(best) for one in best])
    assert _shares(RwrSection(temperature=1e-3), rewards) == pytest.approx(raft, abs=1e-12)
    assert _shares(RwrSection(weighting="sparse", kept_share=1 / len(rewards)), rewards) == raft
    alike = pytest.approx([1 / len(rewards)] * len(rewards))
    assert _shares(RwrSection(temperature=1e9), rewards) == alike
    assert _shares(RwrSection(weighting="sparse", kept_share=1.0), rewards) == alike


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    normaliser=st.sampled_from(["batch", "group"]),
    limit=st.sampled_from([0.5, 5.0]),
    beta=st.sampled_from([0.1, 1.0]),
)
def test_nfts_weights_are_the_authors(seed: int, normaliser: Any, limit: float, beta: float) -> None:
    """PerPromptStatTracker and train_nft_sd3.py of the authors' code, a reward at a time."""
    section = NftSection(normaliser=normaliser, advantage_limit=limit, beta=beta, reference_weight=0.3)
    draw = np.random.default_rng(seed)
    scores = [("a cat", draw.normal(size=4)), ("the sea", draw.normal(loc=3.0, size=3)), ("dull", np.ones(2))]
    objective = Nft(section)
    found, history = objective.advantages(scores, RewardHistory())
    assert not history.rewards
    everything = [float(value) for _, rewards in scores for value in rewards]
    for (_, rewards), advantages in zip(scores, found, strict=True):
        spread = statistics.pstdev(everything if normaliser == "batch" else rewards.tolist())
        weights = objective.image_weights(_score(rewards), advantages)
        for i, reward in enumerate(rewards):
            advantage = (float(reward) - statistics.fmean(rewards.tolist())) / (spread + 1e-4)
            advantage = max(-limit, min(limit, advantage))
            r = max(0.0, min(1.0, advantage / limit / 2.0 + 0.5))
            assert weights.towards[i] == pytest.approx(r / beta * limit)
            assert weights.away[i] == pytest.approx((1.0 - r) / beta * limit)
            assert weights.towards[i] - weights.away[i] == pytest.approx(advantage / beta, abs=1e-12)
        assert (weights.reference.tolist(), weights.weight) == ([0.3] * len(rewards), len(rewards))


def _predictions(seed: int, images: int) -> list[Tensor]:
    """f, f_old, f_ref and the target, (M, 2, 3) each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 2, 3, dtype=torch.float64, generator=generator) for _ in range(4)]


def _slow_item(
    output: Tensor, old: Tensor, target: Tensor, slope: float, beta: float, adaptive: bool, sign: int
) -> Tensor:
    """One item's loss, from x_0 as the authors' code takes it."""
    prediction = (1 - sign * beta) * old + sign * beta * output
    if not adaptive:
        return ((prediction - target) ** 2).sum() / target.numel()
    # x_0 as a linear function of a prediction at fixed x_t, up to what cancels in differences.
    clean, predicted = -slope * target, -slope * prediction
    factor = max(1e-5, float((predicted - clean).abs().mean()))
    return ((predicted - clean) ** 2 / factor).mean()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.1, 0.7, 1.0]), st.booleans())
def test_an_items_values_and_their_gradient_are_those_of_the_formulas(
    seed: int, items: int, beta: float, adaptive: bool
) -> None:
    output, old, reference, target = _predictions(seed, items)
    slopes = torch.linspace(0.3, 2.0, items, dtype=torch.float64)
    fast, slow = (output.clone().requires_grad_(True) for _ in range(2))
    values = Mirror(beta, adaptive).values(fast, old, reference, target, slopes)
    rows = []
    for i in range(items):
        given_ = slow[i], old[i], target[i], float(slopes[i]), beta, adaptive
        deviations = [((slow[i] - other[i]) ** 2).mean() for other in (reference, old)]
        rows.append(torch.stack([_slow_item(*given_, 1), _slow_item(*given_, -1), *deviations]))
    expected = torch.stack(rows)
    torch.testing.assert_close(values, expected)
    weights = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0]), st.booleans())
def test_at_theta_old_nft_is_weighted_regression_with_a_sign(seed: int, beta: float, adaptive: bool) -> None:
    """Its gradient is that of sum A_i l(f_i), A the clipped advantage: RWR's with weights of both signs."""
    rewards = np.random.default_rng(seed).normal(size=4)
    section = NftSection(beta=beta, adaptive=adaptive, reference_weight=0.0, advantage_limit=1.2)
    nft = Nft(section)
    (advantages,), _ = nft.advantages([("a cat", rewards)], RewardHistory())
    assert advantages is not None
    output, _, reference, target = _predictions(seed, 4)
    slopes = torch.linspace(0.3, 2.0, 4, dtype=torch.float64)
    gradients = []
    for mirror, table in (
        (nft.mirror, nft.image_weights(_score(rewards), advantages).coefficients(1)[:, 0]),
        (
            Mirror(1.0, adaptive),
            torch.tensor(advantages)[:, None] * torch.eye(4, dtype=torch.float64)[TOWARDS],
        ),
    ):
        leaf = output.clone().requires_grad_(True)
        values = mirror.values(leaf, output, reference, target, slopes)
        (gradient,) = torch.autograd.grad((table * values).sum(), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_objective_reports_what_it_declares(section: Any) -> None:
    objective = build_objective(section, 4)
    assert isinstance(objective, WeightedDenoising)
    assert set(DENOISING) == {one.kind for one in SECTIONS}
    assert not objective.needs.steps
    rewards = np.array([0.1, 0.5, 0.3])
    (advantages,), _ = objective.advantages([("a cat", rewards)], RewardHistory())
    weights = objective.image_weights(_score(rewards), advantages)
    table = weights.coefficients(2)
    values = torch.rand(3, 2, 4, dtype=torch.float64) * table.any(2, keepdim=True)
    loss = objective.loss(weights, values)
    assert tuple(loss.stats) == statistic_names(objective)
    columns = [weights.towards, weights.away, weights.reference]
    total = sum(
        float(column[i] * values[i, :, at].mean()) for at, column in enumerate(columns) for i in range(3)
    )
    assert float(loss.sum) == pytest.approx(total)
    passed = table.any(2)
    assert loss.stats["denoising_loss"] == pytest.approx((float(values[..., 0].sum()), float(passed.sum())))
    if section.kind == "nft":
        for name, at in (("negative_loss", AWAY), ("reference_deviation", REFERENCE), ("old_deviation", OLD)):
            assert loss.stats[name] == pytest.approx((float(values[..., at].sum()), 6.0))
        with pytest.raises(ValueError, match="advantages"):
            objective.image_weights(_score(rewards), None)


def test_how_much_of_the_old_policy_stays() -> None:
    """decay_type 1 of the authors' code."""
    nft = Nft(NftSection())
    assert [nft.old_decay(updates) for updates in (0, 1, 100, 500, 9000)] == [0.0, 0.001, 0.1, 0.5, 0.5]
    assert build_objective(RaftSection(), 1).old_decay(3) is None  # type: ignore[union-attr]
