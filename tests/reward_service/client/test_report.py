"""Reports against numpy on all images at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cluster.metrics import check_metrics
from common.trajectory import RewardScores, ScorerStamp
from reward_service.client.report import Agreement, RewardReport
from reward_service.contract.results import NoShadow, Outcome, Reply, RewardFailure


def part(rewards: np.ndarray, residual: float = 0.0) -> RewardScores:
    return RewardScores(rewards, rewards[:, None] - rewards[None, :], residual, ScorerStamp("a", "1", ""))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(0, 1000), st.floats(-1e3, 1e3))
def test_agreement_of_groups_is_that_of_all_images(sizes: list[int], seed: int, offset: float) -> None:
    generator = np.random.default_rng(seed)
    groups = [(generator.normal(offset, 1, size), generator.normal(0, 3, size)) for size in sizes]
    found = Agreement()
    for x, y in groups:
        found = found.with_group(x, y)
    x, y = (np.concatenate(values) for values in zip(*groups, strict=True))
    assert found.images == len(x)
    assert found.mean_x == pytest.approx(x.mean())
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


def test_a_report_adds_up_answers_and_names_metrics_of_the_table() -> None:
    own = np.array([1.0, 2.0, 4.0])
    shadows: list[Outcome | NoShadow] = [part(2 * own + 1), RewardFailure("slow"), part(own[:2]), NoShadow()]
    report = RewardReport()
    for shadow in shadows:
        report = report.with_reply(Reply(part(own, residual=0.5), 0.25, shadow), latency_s=2.0)
    report = report.with_reply(Reply(RewardFailure("out"), 1.0, NoShadow()), latency_s=9.0)
    metrics = report.metrics("clip")
    check_metrics(metrics)
    assert metrics == {
        "reward_latency_s/clip": 2.0,
        "reward_busy_s/clip": 2.0,
        "reward_residual/clip": 0.5,
        "shadow/clip/failures": 2.0,
        "shadow/clip/reward_mean": pytest.approx((2 * own + 1).mean()),
        "shadow/clip/correlation": pytest.approx(1.0),
    }


def test_what_is_not_known_is_left_out() -> None:
    assert RewardReport().metrics("clip") == {}
    constant = np.ones(3)
    report = RewardReport().with_reply(Reply(part(constant), 0.1, part(constant)), 1.0)
    assert "shadow/clip/correlation" not in report.metrics("clip")
    assert "shadow/clip/failures" not in RewardReport().with_reply(
        Reply(part(constant), 0.1, NoShadow()), 1.0
    ).metrics("clip")
