"""Adding up scores, against sums written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.trajectory import GroupScore, RewardScores, ScorerStamp
from reward_service.client.reward_client import usable_scores
from reward_service.client.reward_sum import weighted_sum
from reward_service.contract.results import Outcome, RewardFailure

NAMES = ("a", "b", "c")


def scores(rewards: list[float], name: str = "a", twist: float = 0.0) -> RewardScores:
    """Scores whose differences are those of the rewards, plus an antisymmetric twist."""
    values = np.array(rewards)
    order = np.arange(len(values))
    differences = values[:, None] - values[None, :] + twist * np.sign(order[:, None] - order[None, :])
    return RewardScores(values, differences, abs(twist), ScorerStamp(name, "1", "d"))


finite = st.floats(-1e6, 1e6)


@settings(max_examples=40, deadline=None)
@given(
    numbers=st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=4),
    weights=st.tuples(finite, finite),
    twist=finite,
)
def test_sums_are_weighted_image_by_image(
    numbers: list[tuple[float, ...]], weights: tuple[float, float], twist: float
) -> None:
    given = {name: scores([row[i] for row in numbers], name, twist) for i, name in enumerate(NAMES)}
    score = weighted_sum(dict(zip(NAMES, weights, strict=False)), given)
    assert isinstance(score, GroupScore)
    for i, row in enumerate(numbers):
        assert score.rewards[i] == pytest.approx(weights[0] * row[0] + weights[1] * row[1], rel=1e-12)
        for j, other in enumerate(numbers):
            turn = twist * (i > j) - twist * (i < j)
            wanted = sum(w * (row[k] - other[k] + turn) for k, w in enumerate(weights))
            assert score.differences[i, j] == pytest.approx(wanted, rel=1e-9, abs=1e-2)
    assert [stamp.name for stamp in score.scorers] == list(NAMES)
    np.testing.assert_array_equal(score.parts["c"], [row[2] for row in numbers])


@settings(max_examples=30, deadline=None)
@given(failing=st.sets(st.sampled_from(NAMES), min_size=1))
def test_a_failure_of_any_is_a_failure_of_the_group_with_every_reason(failing: set[str]) -> None:
    outcomes: dict[str, Outcome] = {
        name: RewardFailure(f"{name} is out") if name in failing else scores([1.0, 2.0], name)
        for name in NAMES
    }
    score = weighted_sum({"a": 1.0, "b": 2.0}, outcomes)
    assert isinstance(score, RewardFailure)
    assert all((f"{name}: {name} is out" in score.reason) == (name in failing) for name in NAMES)


def test_a_sum_too_large_and_differing_counts_are_failures() -> None:
    huge = scores([1e308, -1e307])
    assert "too large" in weighted_sum({"a": 100.0}, {"a": huge}).reason  # type: ignore[union-attr]
    outcome = weighted_sum({"a": 1.0}, {"a": scores([1.0]), "b": scores([1.0, 2.0], "b")})
    assert isinstance(outcome, RewardFailure)


class TestUsableScores:
    def test_its_stamp_takes_the_name_in_the_configuration(self) -> None:
        found = usable_scores(scores([1.0, 2.0], "served"), 2, "served", "mine")
        assert isinstance(found, RewardScores)
        assert found.stamp == ScorerStamp("mine", "1", "d")

    @pytest.mark.parametrize(
        ("broken", "reason"),
        [
            (scores([1.0, math.nan]), "not all finite"),
            (scores([1.0, 2.0, 3.0]), r"needed is (2,)"),
            (RewardScores(np.ones(2), np.ones((2, 2)), 0.0, ScorerStamp("a", "1", "")), "not antisymmetric"),
            (RewardScores(np.ones(2), np.zeros((2, 2)), math.nan, ScorerStamp("a", "1", "")), "residual"),
            (scores([1.0, 2.0], "other"), "other"),
            (RewardFailure("out"), "out"),
        ],
    )
    def test_what_is_not_sound_is_a_failure(self, broken: Outcome, reason: str) -> None:
        found = usable_scores(broken, 2, "a", "mine")
        assert isinstance(found, RewardFailure)
        assert reason in found.reason
