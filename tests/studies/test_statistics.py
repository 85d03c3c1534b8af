"""Measures of runs against their definitions, on made-up curves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.statistics import (
    at_best,
    interval,
    is_unstable,
    largest_drawdown,
    paired,
    runs_of,
    unseen_gold,
    unseen_proxy,
)
from tests.studies.test_results import row

CURVES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


def test_an_interval_is_that_of_all_draws_of_as_many_seeds() -> None:
    values = [0.1, 0.4, 0.2]
    means = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    found = interval(values)
    assert found.mean == pytest.approx(np.mean(values))
    # 27 equally likely draws: the outermost on either side has a chance of 1/27, more than the tail of 2.5 %.
    assert (found.low, found.high) == pytest.approx((min(means), max(means)))
    assert math.isnan(interval([0.3, 0.4]).low)


@settings(max_examples=50)
@given(CURVES)
def test_the_drawdown_is_the_largest_fall_from_an_earlier_value(values: list[float]) -> None:
    pairs = [early - late for index, late in enumerate(values) for early in values[: index + 1]]
    assert largest_drawdown(values) == max(pairs)


@pytest.mark.parametrize(
    ("values", "unstable"),
    [((0.2, 0.6, 0.5), False), ((0.2, 0.6, 0.39), True), ((0.2, 0.1), True), ((0.2, 0.2), False)],
)
def test_a_run_is_unstable_where_it_loses_more_than_half_of_its_gain(
    values: tuple[float, ...], unstable: bool
) -> None:
    assert is_unstable(values) is unstable


def test_the_best_row_is_that_of_gold() -> None:
    run = [row(unseen=0.5, gold=0.5), row(epoch=1, unseen=0.6, gold=0.7), row(epoch=2, unseen=0.8, gold=0.6)]
    assert at_best(run, unseen_proxy) == 0.6
    assert at_best(run, unseen_gold) == 0.7


def test_only_seeds_that_both_have_are_compared() -> None:
    rows = [row("a", 0, unseen=0.5), row("a", 1, unseen=0.9), row("b", 1, unseen=0.6)]
    runs = runs_of(rows)
    found = paired(runs["a"], runs["b"], lambda run: unseen_proxy(run[-1]))
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(0.3), 1)
    assert paired(runs["a"], {}, lambda run: 0.0) is None
