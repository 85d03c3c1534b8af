"""Intervals against scipy, coverage by simulation, and what the tables show."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from scipy import stats

from common.cluster.metrics import check_metrics
from common.trajectory import Float64, PolicyStamp
from driver.report.console import PlainConsole
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.report.intervals import (
    Interval,
    change_markdown,
    change_table,
    compare,
    evaluation_markdown,
    evaluation_metrics,
    evaluation_table,
    headline,
    history,
    mean_interval,
    remarks,
    side_by_side_markdown,
)


def evaluation(scores: dict[str, Float64], epoch: int = 0, sets: tuple[str, ...] = ("unseen",)) -> Evaluation:
    """Each set with the same scores (P, I)."""
    prompts = tuple(f"prompt {index}" for index in range(len(next(iter(scores.values())))))
    pixels = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    evaluated = tuple(PromptSetEvaluation(name, prompts, scores, pixels) for name in sets)
    return Evaluation(epoch, PolicyStamp(epoch, "d" * 64, "run"), evaluated)


def shown(table: Table) -> str:
    console = PlainConsole(width=80, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@settings(max_examples=25)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_interval_is_scipys(values: list[float]) -> None:
    interval = mean_interval(np.array(values))
    error = stats.sem(values)
    expected = stats.t.ppf(0.975, len(values) - 1) * error
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert interval.half_width == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_interval_covers_the_truth_in_95_of_100_cases() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(2000, 5))
    intervals = [mean_interval(row) for row in draws]
    share = np.mean([abs(interval.mean - 1.0) <= interval.half_width for interval in intervals])
    assert share == pytest.approx(0.95, abs=0.015)


def test_one_prompt_has_no_finite_interval_and_none_is_an_error() -> None:
    assert mean_interval(np.array([2.0])) == Interval(2.0, math.inf)
    assert not Interval(2.0, math.inf).excludes_zero
    with pytest.raises(ValueError, match="no values"):
        mean_interval(np.array([]))


def test_difference_is_paired_by_prompt_with_images_averaged_first() -> None:
    rng = np.random.default_rng(1)
    before, gain = rng.normal(size=(12, 3)), rng.normal(0.5, 0.1, size=(12, 3))
    (change,) = compare([evaluation({"gold": before}), evaluation({"gold": before + gain}, epoch=5)])
    paired = stats.ttest_rel((before + gain).mean(axis=1), before.mean(axis=1)).confidence_interval()
    assert change.before
    assert change.difference
    assert change.difference.mean - change.difference.half_width == pytest.approx(paired.low)
    assert change.difference.mean + change.difference.half_width == pytest.approx(paired.high)
    assert change.difference.half_width < change.before.half_width / 3
    assert (change.set_name, change.score, change.prompts) == ("unseen", "gold", 12)


def versioned(gold: Float64, epoch: int, *versions: str) -> Evaluation:
    """With a gold reward scored by these versions, and a trained one that never changes."""
    made = evaluation({"gold": gold, "reward": gold}, epoch)
    return replace(made, sets=(replace(made.sets[0], versions={"gold": versions, "reward": ("1",)}),))


def test_only_what_one_version_measured_on_the_same_prompts_is_compared() -> None:
    """Each score with the first evaluation of its own version; without any there is no difference."""
    old, new = np.zeros((4, 1)), np.ones((4, 1))
    changes = compare([versioned(old, 0, "A"), versioned(old, 5, "A", "B"), versioned(new, 9, "B")])
    gold, reward = changes
    assert (gold.before, gold.difference, gold.is_clear) == (None, None, False)
    assert "A" in gold.why
    assert "B" in gold.why
    assert headline(changes, "gold") == "gold on 4 unseen prompts: 1.000 ± 0.000"
    assert reward.difference == Interval(1.0, 0.0)
    assert [gold.why in line for line in remarks(changes)] == [True]
    for table in (change_markdown(changes), shown(change_table(changes))):
        assert gold.why in " ".join(table.split())
    since, reward = compare([versioned(old, 0, "A"), versioned(old, 5, "B"), versioned(new, 9, "B")])
    assert (since.since, since.difference, reward.since) == (5, Interval(1.0, 0.0), 0)
    assert ["epoch 5" in line for line in remarks([since, reward])] == [True]
    (mixed, _) = compare([versioned(old, 0, "A", "B"), versioned(new, 9, "A", "B")])
    assert mixed.why


def test_a_judge_s_scores_have_no_level_and_no_difference_is_shown() -> None:
    """Of images that it compares with each other; of a score that is 0 everywhere, 0 is what it is."""
    judged, nothing = np.array([[0.5, -0.5], [0.1, -0.1]]), np.zeros((2, 2))
    scores = {"judge": judged, "gold": judged + 1.0, "never": nothing}
    changes = compare([evaluation(scores), evaluation({**scores, "judge": judged * 3.0}, 5)])
    assert [change.score for change in changes if change.is_relative] == ["judge"]
    assert ["judge" in line for line in remarks(changes)] == [True]
    assert (headline(changes, "judge"), headline(changes, "never")[:5]) == ("", "never")
    (row,) = [line for line in change_markdown(changes).splitlines() if line.startswith("| 2 unseen | judge")]
    assert row.split("|")[3:6] == [" - "] * 3


def test_a_judge_that_was_asked_before_against_after_shows_what_it_prefers() -> None:
    scores = {"judge": np.array([[0.5, -0.5], [0.1, -0.1], [0.0, 0.0]])}
    preferred = np.array([[1.0, 0.5], [-0.5, 1.0], [1.0, 1.0]])
    after = evaluation(scores, 5)
    asked = replace(after, sets=(replace(after.sets[0], preferences={"judge": preferred}),))
    (change,) = compare([evaluation(scores), asked])
    assert (change.is_relative, change.difference) == (True, mean_interval(preferred.mean(axis=1)))
    (row,) = [
        line for line in change_markdown([change]).splitlines() if line.startswith("| 3 unseen | judge")
    ]
    assert row.split("|")[3:5] == [" - "] * 2
    assert "+0.67" in row
    assert remarks([change]) != remarks(compare([evaluation(scores), after]))


def test_the_history_of_a_score_is_of_one_version() -> None:
    of = [versioned(np.full((4, 1), float(epoch)), epoch, version) for epoch, version in enumerate("AABB")]
    assert history(of, "unseen", "gold") == (2.0, 3.0)
    assert history(of, "unseen", "reward") == (0.0, 1.0, 2.0, 3.0)
    assert history(of, "unseen", "new") == history([], "unseen", "gold") == ()


def test_prompts_and_scores_that_are_missing_are_said_and_the_others_compared() -> None:
    four, five = np.zeros((4, 1)), np.ones((5, 1))
    five[4] = 100.0
    (dropped,) = compare([evaluation({"gold": four}), evaluation({"gold": five})])
    assert (dropped.prompts, dropped.difference) == (4, Interval(1.0, 0.0))
    assert "reward" in compare([evaluation({"gold": four}), evaluation({"reward": four})])[0].why
    (alone,) = compare([evaluation({"gold": four}, sets=("seen",)), evaluation({"gold": four})])
    assert alone.why
    other = evaluation({"gold": four})
    other = replace(other, sets=(replace(other.sets[0], prompts=tuple("abcd")),))
    assert "prompts" in compare([evaluation({"gold": four}), other])[0].why
    assert compare([evaluation({"gold": four})])[0].why


def changes_up_down_and_unclear() -> tuple[Evaluation, Evaluation]:
    base = np.random.default_rng(2).normal(size=(16, 1))
    swing = np.where(np.arange(16) % 2, 1.0, -1.0)[:, None]
    after = {"up": base + 1 + 0.01 * swing, "down": base - 1 + 0.01 * swing, "same": base + swing}
    sets = ("seen", "unseen")
    return evaluation(dict.fromkeys(after, base), sets=sets), evaluation(after, epoch=9, sets=sets)


def test_tables_show_every_row_and_mark_only_clear_differences() -> None:
    before, after = changes_up_down_and_unclear()
    changes = compare([before, after])
    assert remarks(changes) == []
    rows = [row.split(" | ") for row in change_markdown(changes, ["LATE"]).splitlines() if "| 16" in row]
    marked = {(row[0], row[1]) for row in rows if "**" in " ".join(row)}
    assert marked == {(f"| 16 {name}", score) for name in ("seen", "unseen") for score in ("up", "down")}
    text = shown(change_table(changes, "Result", ["LATE"]))
    assert "…" not in text
    assert "LATE" in text
    lines = [row.split() for row in text.splitlines() if row.strip().startswith("16")]
    assert [row[1:3] for row in lines] == [
        [name, score] for name in ("seen", "unseen") for score in ("up", "down", "same")
    ]
    assert sum("*" in " ".join(row) for row in lines) == len(rows) - 2 == 4


def test_sets_stand_side_by_side_by_score() -> None:
    two = [
        evaluation({"gold": x, "a_b": 2 * x}, sets=("seen", "unseen")) for x in (np.zeros((2, 1)), np.eye(2))
    ]
    changes = compare(two)
    rows = [
        line.strip("| ").split(" | ") for line in side_by_side_markdown(changes).splitlines() if "|" in line
    ]
    assert (rows[0], [row[0] for row in rows[2:]]) == (["score", "seen", "unseen"], ["gold", "a_b"])
    for score, *cells in rows[2:]:
        means = [c.difference.mean for c in changes if c.score == score and c.difference]
        assert [float(cell.split(" ")[0]) for cell in cells] == pytest.approx(means)


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
