"""Ratios of medians, and the order in which sides are called."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from benchmarks.timing import Comparison, Seconds, Times, alternate

CPU = torch.device("cpu")


def _comparison(ours: Seconds, bare: Seconds) -> Comparison:
    """CPU time is twice the wall time on our side, and equal to it on the other."""
    twice = tuple(2 * value for value in ours)
    return Comparison("a", 6, "images", ours=Times(ours, twice), bare=Times(bare, bare), target=0.95)


def test_sides_take_turns_and_warm_ups_are_not_timed() -> None:
    calls: list[tuple[str, int]] = []
    sides = [lambda turn: calls.append(("a", turn)), lambda turn: calls.append(("b", turn))]
    times = alternate(sides, repeats=2, warm_ups=1, device=CPU)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [len(one.wall) for one in times] == [2, 2]
    assert [len(one.cpu) for one in times] == [2, 2]


def test_each_side_gets_its_own_seconds() -> None:
    (slow, fast) = alternate([lambda _: time.sleep(0.03), lambda _: None], repeats=3, warm_ups=1, device=CPU)
    assert min(slow.wall) >= 0.03
    assert max(slow.cpu) < 0.03
    assert statistics.median(fast.wall) < 0.03


def test_ratio_is_bare_over_ours_of_the_medians() -> None:
    comparison = _comparison(ours=(2.0, 1.0, 100.0), bare=(3.0, 0.0, 1.0))
    assert comparison.ratio == pytest.approx(0.5)
    assert comparison.cpu_ratio == pytest.approx(0.25)
    assert comparison.ours_per_s == pytest.approx(3.0)
    assert comparison.bare_per_s == pytest.approx(6.0)


@pytest.mark.parametrize(("ours", "met"), [(1.0, True), (1.06, False)])
def test_slower_than_the_target_is_not_met(ours: float, met: bool) -> None:
    assert _comparison(ours=(ours,), bare=(1.0,)).met is met


def test_spread_is_of_neighbouring_turns() -> None:
    # A machine that is ten times slower from the third turn on slows both sides: the ratios stay the same.
    comparison = _comparison(ours=(1.0, 1.0, 10.0, 10.0), bare=(2.0, 2.0, 20.0, 20.0))
    assert comparison.spread == pytest.approx((2.0, 2.0))
    assert _comparison(ours=(1.0,), bare=(0.5,)).spread == (0.5, 0.5)
