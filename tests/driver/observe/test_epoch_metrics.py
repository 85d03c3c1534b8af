"""An epoch's metrics from its groups and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.actor import SampleReport
from common.cluster.metrics import check_metrics
from common.stopwatch import Busy
from common.trajectory import GroupScore, PolicyStamp, RewardScores, ScorerStamp
from driver.observe.epoch_metrics import EpochTally
from learner.report import UpdateOutcome, UpdateReport
from reward_service.client.report import RewardReport
from reward_service.contract.results import Reply
from tests.scored_groups import pointwise
from tests.tiny_config import make_config

FAULTS = dict.fromkeys(("faults/actor_restarts", "faults/redone_tasks", "faults/dropped_groups"), 0.0)
FAULTS["throughput/actors_ready"] = 2.0


def report(**changes: Any) -> UpdateReport:
    values: dict[str, Any] = {
        "version": 3,
        "outcome": UpdateOutcome.APPLIED,
        "bad_groups": (),
        "loss": 2.0,
        "gradient_norm": 0.5,
        "stats": {"clip_share": 0.25, "tie_share": 0.1},
        "groups": 2,
        "log_ratio_mean": 0.3,
        "log_ratio_shares": {1: 0.4, 3: 0.6},
        "latent_elements": 10,
        "log_ratio_mismatch": 1e-8,
        "step_gradient_norms": {0: 0.1, 1: 0.2, 2: 0.3},
        "process": "host:1",
        "busy": (Busy(0.0, 1.0), Busy(1.0, 0.5)),
        "passes": 5,
    }
    return UpdateReport(**{**values, **changes})


def group(rewards: list[float], version: int) -> tuple[GroupScore, SampleReport]:
    values, stamp = np.array(rewards), PolicyStamp(version, "", "run")
    score = pointwise(values, {"jpeg": 2 * values}, (ScorerStamp("jpeg", "1", ""),))
    return score, SampleReport(stamp, len(rewards), "host:1", Busy(0.0, 2.0), nbytes=100, passes=7)


@pytest.fixture
def tally(tmp_path: Path) -> EpochTally:
    config = make_config(Path("no/model"), tmp_path, {"actors.count": 2, "objective.updates_per_epoch": 2})
    begun = EpochTally.start(config, weight_bytes=7)
    current = PolicyStamp(2, "", "run")
    return begun.with_group(*group([1.0, 3.0], 2), current).with_group(*group([0.0, 0.0], 0), current)


def test_metrics_are_what_their_names_say(tally: EpochTally) -> None:
    first = [report(), report(log_ratio_mismatch=1e-6, busy=(Busy(0.0, 0.5),))]
    second = [
        report(
            gradient_norm=1.5,
            stats={"clip_share": 0.75, "tie_share": 0.1},
            outcome=UpdateOutcome.BAD_GRADIENT,
            version=4,
            step_gradient_norms={},
        )
    ] * 2
    part = RewardScores(np.ones(2), np.zeros((2, 2)), 0.25, ScorerStamp("jpeg", "1", ""))
    answered = RewardReport().with_reply(Reply(part, 1.5), latency_s=2.0)
    rewards = {"jpeg": answered, "gold": answered}
    metrics = tally.metrics([first, second], rewards, FAULTS, seconds=4.0)
    check_metrics(metrics)
    assert metrics["reward/mean"] == 1.0
    assert metrics["reward/within_group_std"] == 0.5
    assert metrics["reward/jpeg/mean"] == 2.0
    assert metrics["optimizer/gradient_norm"] == 1.0
    assert metrics["objective/clip_share"] == 0.5
    assert metrics["optimizer/skipped_updates"] == 1
    assert metrics["optimizer/bad_updates"] == 1
    assert metrics["optimizer/gradient_norm_step_2"] == 0.3
    assert metrics["policy/log_ratio_share_step_3"] == 0.6
    assert metrics["policy/log_ratio_mismatch_max"] == 1e-6
    assert metrics["policy/version"] == 4
    # Two updates an epoch: a group two versions old is one epoch old, the other is new.
    assert metrics["policy/age_epochs"] == 0.5
    # The report's log ratio is a sum over steps of means over ten elements.
    assert metrics["policy/kl_to_reference"] == pytest.approx(3.0)
    assert metrics["throughput/images_per_s"] == 1.0
    assert metrics["transport/bytes_moved"] == 207
    assert metrics["work/actor_passes"] == 14
    assert metrics["work/learner_passes"] == 20
    assert metrics["work/reward_queries"] == 4
    assert metrics["time/actors_busy_s"] == 2.0
    assert metrics["time/actors_idle_share"] == 0.5
    assert metrics["time/reward_busy_s"] == metrics["reward_busy_s/jpeg"] == 1.5
    assert metrics["reward_latency_s/jpeg"] == 2.0
    assert metrics["reward_residual/jpeg"] == 0.25
    assert not [name for name in metrics if name.endswith("/gold")]
    assert metrics["time/learner_busy_s"] == pytest.approx((1.5 + 0.5 + 1.5 + 1.5) / 2)


def test_without_a_reference_there_is_no_distance_to_it(tally: EpochTally) -> None:
    metrics = tally.metrics([[report(log_ratio_mean=None)]], {}, FAULTS, seconds=4.0)
    assert "policy/kl_to_reference" not in metrics


@pytest.mark.parametrize(
    ("groups", "within", "across"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], True, True),
        ([[0.0, 0.0], [0.0, 0.0]], True, True),
        ([[20.0, 20.000002], [20.0, 20.0]], True, True),
        ([[0.1, 0.1], [0.3, 0.3]], True, False),
        ([[0.5, 0.5], [0.5, 0.6]], False, False),
        ([[1e-9, 2e-9], [1e-9, 1e-9]], False, False),
    ],
)
def test_rewards_that_differ_by_rounding_alone_do_not_differ(
    tmp_path: Path, groups: list[list[float]], within: bool, across: bool
) -> None:
    """One image that differs in one prompt is enough."""
    tally = EpochTally.start(make_config(Path("no/model"), tmp_path), weight_bytes=0)
    for rewards in groups:
        tally = tally.with_group(*group(rewards, 0), PolicyStamp(0, "", "run"))
    assert (tally.nothing_differs(False), tally.nothing_differs(True)) == (within, across)
