"""Alarms are raised by what their words say, and by nothing else."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cluster.metrics import check_metrics
from common.config.safety import GuardsSection
from driver.observe.alarms import ALARMS, EpochSigns, gradient_norm_alarm, judge, spread_alarm

positive = st.floats(1e-6, 1e6)


@given(st.lists(positive, min_size=0, max_size=40), positive, st.floats(1.5, 100))
def test_a_gradient_norm_is_judged_by_the_median_of_the_last_twenty(
    earlier: list[float], norm: float, factor: float
) -> None:
    raised = bool(gradient_norm_alarm(norm, earlier, factor))
    recent = sorted(earlier[-20:])
    expected = len(recent) >= 5 and norm > factor * (
        (recent[(len(recent) - 1) // 2] + recent[len(recent) // 2]) / 2
    )
    assert raised == expected


def test_norms_that_are_not_finite_are_left_out_of_the_median() -> None:
    earlier = [1.0, math.nan, 1.0, math.inf, 1.0, 1.0, 1.0]
    assert gradient_norm_alarm(10.5, earlier, 10.0) == (
        "gradient norm 10.5, 10.5 times the median of the last 5 epochs"
    )
    assert not gradient_norm_alarm(10.5, earlier[:-1], 10.0)
    assert not gradient_norm_alarm(math.nan, earlier, 10.0)
    assert not gradient_norm_alarm(1.0, [0.0] * 6, 10.0)


@given(st.lists(positive, min_size=5, max_size=9), positive, st.floats(0.0, 0.99))
def test_a_spread_is_judged_by_the_median_of_the_first_five(
    first: list[float], spread: float, share: float
) -> None:
    assert bool(spread_alarm(spread, first, share)) == (spread < share * statistics.median(first[:5]))
    assert not spread_alarm(spread, first[:4], share)
    assert not spread_alarm(spread, [0.0] * 5, share)


def signs(norm: float = 1.0, spread: float = 1.0, bad: int = 0, mismatch: float = 0.0) -> EpochSigns:
    return EpochSigns(norm, spread, bad, row=0, mismatch=mismatch, clip_range=1e-4)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (signs(), set()),
        (signs(norm=11.0), {"gradient_norm"}),
        (signs(spread=0.19), {"reward_spread"}),
        (signs(bad=2, norm=math.nan), {"bad_numbers"}),
        (signs(mismatch=9e-5), set()),
        (signs(mismatch=2e-4), {"log_prob_mismatch"}),
        (signs(bad=1, norm=11.0, spread=0.0, mismatch=1.0), set(ALARMS)),
    ],
)
def test_an_epoch_is_judged_by_those_before_it_alone(now: EpochSigns, expected: set[str]) -> None:
    history = {number: signs() for number in range(1, 8)}
    later = {8: signs(norm=1e9, spread=1e9), 9: signs(norm=1e9)}
    assert set(judge(now, history, 8, GuardsSection())) == expected
    assert set(judge(now, {**history, **later}, 8, GuardsSection())) == expected


def test_the_first_epochs_are_not_judged_by_each_other() -> None:
    history = {number: signs(spread=0.001 if number == 3 else 1.0) for number in range(1, 6)}
    for epoch in range(1, 6):
        assert not judge(history[epoch], history, epoch, GuardsSection())


def test_every_alarm_is_a_metric() -> None:
    check_metrics([f"alarms/{name}" for name in ALARMS])
