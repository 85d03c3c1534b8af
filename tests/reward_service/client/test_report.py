"""Reports against numpy on all images at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cluster.metrics import check_metrics
from common.trajectory import RewardScores, ScorerStamp
from reward_service.client.report import RewardReport
from reward_service.contract.results import Outcome, Reply, RewardFailure


def part(rewards: np.ndarray, residual: float = 0.0) -> RewardScores:
    return RewardScores(rewards, rewards[:, None] - rewards[None, :], residual, ScorerStamp("a", "1", ""))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(0, 1000), st.floats(-1e3, 1e3))
def test_the_shadow_of_groups_is_that_of_all_images(sizes: list[int], seed: int, offset: float) -> None:
    generator = np.random.default_rng(seed)
    groups = [(generator.normal(offset, 1, size), generator.normal(0, 3, size)) for size in sizes]
    report = RewardReport()
    for x, y in groups:
        report = report.with_reply(Reply(part(y), 0.0, part(x)), 0.0)
    x, y = (np.concatenate(values) for values in zip(*groups, strict=True))
    x, y = x - x.mean(), y - y.mean()
    found = report.metrics("a")
    assert found["shadow/a/reward_mean"] == pytest.approx(np.mean(np.concatenate([x for x, _ in groups])))
    assert found["shadow/a/correlation"] == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), abs=1e-6)


def test_a_report_adds_up_answers_and_names_metrics_of_the_table() -> None:
    own = np.array([1.0, 2.0, 4.0])
    shadows: list[Outcome | None] = [part(2 * own + 1), RewardFailure("slow"), part(own[:2]), None]
    report = RewardReport()
    for shadow in shadows:
        report = report.with_reply(Reply(part(own, residual=0.5), 0.25, shadow), latency_s=2.0)
    report = report.with_reply(Reply(RewardFailure("out"), 1.0), latency_s=9.0)
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
    reply = Reply(part(np.ones(3)), 0.1)
    assert "shadow/clip/failures" not in RewardReport().with_reply(reply, 1.0).metrics("clip")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("used", "shadow"),
    [
        ([0.1] * 3, [0.0, 1.0, 2.0]),
        ([0.0, 1.0, 2.0], [0.1] * 3),
        ([1.0], [2.0]),
        ([0.0, 1e-200], [0.0, 1e-200]),
    ],
)
def test_what_does_not_vary_has_a_mean_and_no_correlation(used: list[float], shadow: list[float]) -> None:
    report = RewardReport().with_reply(Reply(part(np.array(used)), 0.1, part(np.array(shadow))), 1.0)
    found = report.metrics("clip")
    assert found["shadow/clip/reward_mean"] == pytest.approx(np.mean(shadow))
    assert "shadow/clip/correlation" not in found
