"""The plan of pairs and the least squares, against numpy's own solver and counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.errors import RewardError
from reward_service.contract.pairs import all_pairs_count, plan_pairs, solve_pairs

COUNTS = st.integers(1, 20)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    count = draw(COUNTS)
    budget = draw(st.integers(max(count - 1, 0), all_pairs_count(count) + 3))
    return count, plan_pairs(count, budget, draw(SEEDS))


def reached_from_first(count: int, pairs: np.ndarray) -> int:
    neighbours: dict[int, set[int]] = {image: set() for image in range(count)}
    for first, second in pairs.tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    seen, waiting = {0}, [0]
    while waiting:
        fresh = neighbours[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return len(seen)


def by_lstsq(count: int, pairs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    design = np.zeros((len(pairs), count))
    for row, (first, second) in enumerate(pairs):
        design[row, first], design[row, second] = 1.0, -1.0
    return np.linalg.lstsq(design, answers, rcond=None)[0]  # the shortest solution has mean 0


@given(COUNTS, st.integers(0, 250), SEEDS)
@settings(max_examples=200, deadline=None)
def test_a_plan_has_its_budget_connects_and_is_balanced(count: int, budget: int, seed: int) -> None:
    assume(budget == 0 or budget >= count - 1)
    pairs = plan_pairs(count, budget, seed)
    assert pairs.dtype == np.int64
    assert pairs.shape == (min(budget, all_pairs_count(count)) if budget else all_pairs_count(count), 2)
    assert len({frozenset(pair) for pair in pairs.tolist() if pair[0] != pair[1]}) == len(pairs)
    assert reached_from_first(count, pairs) == count
    first, second = (np.bincount(pairs[:, side], minlength=count) for side in (0, 1))
    assert np.ptp(first + second) <= 2
    assert np.abs(first - second).max() <= 1


def test_a_plan_follows_its_seed() -> None:
    assert np.array_equal(plan_pairs(9, 14, 5), plan_pairs(9, 14, 5))
    assert not np.array_equal(plan_pairs(9, 14, 5), plan_pairs(9, 14, 6))
    assert not np.array_equal(plan_pairs(9, 0, 5), plan_pairs(9, 0, 6))


@pytest.mark.parametrize(("count", "budget"), [(5, 3), (5, -1), (40, 1), (0, 0)])
def test_a_budget_that_cannot_connect_is_refused(count: int, budget: int) -> None:
    with pytest.raises(RewardError, match=rf"\b{count}\b"):
        plan_pairs(count, budget, 0)


@given(plans(), SEEDS)
@settings(max_examples=100, deadline=None)
def test_consistent_answers_are_recovered(plan: tuple[int, np.ndarray], seed: int) -> None:
    count, pairs = plan
    truth = np.random.default_rng(seed).normal(size=count) * 10.0
    answers = truth[pairs[:, 0]] - truth[pairs[:, 1]]
    rewards, differences, residual = solve_pairs(count, pairs, answers)
    np.testing.assert_allclose(rewards, truth - truth.mean(), atol=1e-8)
    np.testing.assert_allclose(differences, truth[:, None] - truth[None, :], atol=1e-8)
    assert residual < 1e-8


@given(plans(), SEEDS)
@settings(max_examples=100, deadline=None)
def test_any_answers_agree_with_lstsq(plan: tuple[int, np.ndarray], seed: int) -> None:
    count, pairs = plan
    answers = np.random.default_rng(seed).normal(size=len(pairs))
    rewards, differences, residual = solve_pairs(count, pairs, answers)
    wanted = by_lstsq(count, pairs, answers)
    np.testing.assert_allclose(rewards, wanted, atol=1e-9)
    assert rewards.mean() == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_array_equal(differences, -differences.T)
    misses = [answer - (wanted[i] - wanted[j]) for (i, j), answer in zip(pairs, answers, strict=True)]
    assert residual == pytest.approx(float(np.sqrt(np.mean(np.square(misses)))) if misses else 0.0, abs=1e-9)


@given(plans(), SEEDS)
@settings(max_examples=50, deadline=None)
def test_order_and_orientation_do_not_matter(plan: tuple[int, np.ndarray], seed: int) -> None:
    count, pairs = plan
    rng = np.random.default_rng(seed)
    answers = rng.normal(size=len(pairs))
    order, turned = rng.permutation(len(pairs)), rng.random(len(pairs)) < 0.5
    other_pairs = np.where(turned[:, None], pairs[:, ::-1], pairs)[order]
    other_answers = np.where(turned, -answers, answers)[order]
    for ours, other in zip(
        solve_pairs(count, pairs, answers), solve_pairs(count, other_pairs, other_answers), strict=True
    ):
        np.testing.assert_allclose(ours, other, atol=1e-9)


def test_all_pairs_give_the_measured_matrix_and_its_row_means() -> None:
    pairs = plan_pairs(6, 0, 3)
    answers = np.random.default_rng(1).normal(size=15)
    rewards, differences, residual = solve_pairs(6, pairs, answers)
    np.testing.assert_array_equal(differences[pairs[:, 0], pairs[:, 1]], answers)
    np.testing.assert_allclose(rewards, differences.mean(axis=1))
    assert residual > 0.1


@pytest.mark.parametrize(
    ("pairs", "answers", "complaint"),
    [
        ([[0, 1], [2, 3]], [1.0, 1.0], "do not connect"),
        ([[0, 1], [1, 2], [1, 0], [2, 3]], [1.0] * 4, "twice"),
        ([[0, 1], [1, 2], [2, 4]], [1.0] * 3, "different images of 0..3"),
        ([[0, 1], [1, 1], [2, 3]], [1.0] * 3, "different images"),
        ([[0, 1], [1, 2], [2, 3]], [1.0, np.nan, 1.0], "finite"),
        ([[0, 1], [1, 2], [2, 3]], [1.0, 1.0], "3 finite answers"),
        ([[0.0, 1.0]], [1.0], "whole numbers"),
        ([0, 1], [1.0], "whole numbers"),
    ],
)
def test_what_leaves_the_fit_undetermined_is_refused(pairs: list, answers: list, complaint: str) -> None:
    with pytest.raises(RewardError, match=complaint):
        solve_pairs(4, np.array(pairs), np.array(answers))
