"""Intervals against scipy, coverage by simulation, and what the tables show."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from common.cluster.metrics import check_metrics
from common.trajectory import Float64, PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.report.intervals import (
    Interval,
    begun_late,
    change_markdown,
    change_table,
    compare,
    evaluation_markdown,
    evaluation_metrics,
    evaluation_table,
    mean_interval,
)


def evaluation(scores: dict[str, Float64], epoch: int = 0, sets: tuple[str, ...] = ("unseen",)) -> Evaluation:
    """Each set with the same scores (P, I)."""
    prompts = tuple(f"prompt {index}" for index in range(len(next(iter(scores.values())))))
    pixels = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    evaluated = tuple(PromptSetEvaluation(name, prompts, scores, pixels) for name in sets)
    return Evaluation(epoch, PolicyStamp(epoch, "d" * 64, "run"), evaluated)


@settings(max_examples=25)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_interval_is_scipys(values: list[float]) -> None:
    interval = mean_interval(np.array(values))
    error = stats.sem(values)
    expected = stats.t.ppf(0.975, len(values) - 1) * error
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert interval.half_width == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_interval_covers_the_truth_in_95_of_100_cases() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(4000, 5))
    intervals = [mean_interval(row) for row in draws]
    share = np.mean([abs(interval.mean - 1.0) <= interval.half_width for interval in intervals])
    assert share == pytest.approx(0.95, abs=0.012)


def test_one_prompt_has_no_finite_interval_and_none_is_an_error() -> None:
    assert mean_interval(np.array([2.0])) == Interval(2.0, math.inf)
    assert not Interval(2.0, math.inf).excludes_zero
    with pytest.raises(ValueError, match="no values"):
        mean_interval(np.array([]))


def test_difference_is_paired_by_prompt_with_images_averaged_first() -> None:
    rng = np.random.default_rng(1)
    before, gain = rng.normal(size=(12, 3)), rng.normal(0.5, 0.1, size=(12, 3))
    (change,) = compare(evaluation({"gold": before}), evaluation({"gold": before + gain}, epoch=5))
    paired = stats.ttest_rel((before + gain).mean(axis=1), before.mean(axis=1)).confidence_interval()
    assert change.difference.mean - change.difference.half_width == pytest.approx(paired.low)
    assert change.difference.mean + change.difference.half_width == pytest.approx(paired.high)
    assert change.difference.half_width < change.before.half_width / 3
    assert (change.set_name, change.score, change.prompts) == ("unseen", "gold", 12)


def test_what_was_not_measured_alike_cannot_be_compared() -> None:
    four, five = np.zeros((4, 1)), np.zeros((5, 1))
    with pytest.raises(ValueError, match="unseen prompts"):
        compare(evaluation({"gold": four}), evaluation({"gold": five}))
    with pytest.raises(ValueError, match="unseen prompts"):
        compare(evaluation({"gold": four}), evaluation({"reward": four}))
    with pytest.raises(ValueError, match="prompt sets"):
        compare(evaluation({"gold": four}), evaluation({"gold": four}, sets=("seen",)))


def changes_up_down_and_unclear() -> tuple[Evaluation, Evaluation]:
    base = np.random.default_rng(2).normal(size=(16, 1))
    swing = np.where(np.arange(16) % 2, 1.0, -1.0)[:, None]
    after = {"up": base + 1 + 0.01 * swing, "down": base - 1 + 0.01 * swing, "same": base + swing}
    sets = ("seen", "unseen")
    return evaluation(dict.fromkeys(after, base), sets=sets), evaluation(after, epoch=9, sets=sets)


def test_tables_show_every_row_and_mark_only_clear_differences() -> None:
    before, after = changes_up_down_and_unclear()
    changes = compare(before, after)
    assert begun_late(before) == ""
    assert begun_late(after)
    rows = [row.split(" | ") for row in change_markdown(changes, "LATE").splitlines() if "| 16" in row]
    marked = {(row[0], row[1]) for row in rows if "**" in " ".join(row)}
    assert marked == {(f"| 16 {name}", score) for name in ("seen", "unseen") for score in ("up", "down")}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(change_table(changes, "Result", "LATE"))
    text = console.export_text()
    assert "…" not in text
    assert "LATE" in text
    shown = [row.split() for row in text.splitlines() if row.strip().startswith("16")]
    assert [row[1:3] for row in shown] == [
        [name, score] for name in ("seen", "unseen") for score in ("up", "down", "same")
    ]
    assert sum("*" in " ".join(row) for row in shown) == len(rows) - 2 == 4


def test_one_evaluation_as_metrics_and_tables() -> None:
    scores = {"reward": np.array([[1.0, 3.0], [2.0, 2.0], [5.0, 3.0]]), "gold": np.ones((3, 2))}
    measured = evaluation(scores, sets=("seen", "unseen"))
    metrics = evaluation_metrics(measured)
    check_metrics(metrics)
    assert metrics["eval/unseen/reward"] == pytest.approx(8 / 3)
    assert metrics["eval/width95/seen/gold"] == 0.0
    assert len(metrics) == 8
    assert evaluation_table(measured).row_count == 4
    assert "2.7 ± 2.9" in evaluation_markdown(measured)
