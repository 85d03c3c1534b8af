"""Before against after: means with 95 % confidence intervals, over prompts, as a table.

The unit is the prompt: the question is about prompts, and images of one prompt are no independent answers
to it. With x_p the mean score of prompt p's images and P prompts,

    mean        m = sum_p x_p / P
    half-width  h = t_{0.975, P-1} * s / sqrt(P),      s^2 = sum_p (x_p - m)^2 / (P - 1)

with t the quantile of Student's t distribution. A difference is paired: x_p = after_p - before_p, which the
same prompts and the same noise make tighter than the two intervals beside it suggest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text
from scipy import stats

from common.trajectory import Float64
from driver.report.evaluation import Evaluation, PromptSetEvaluation

CONFIDENCE = 0.95
TOTAL = "reward"
"""Name of the trained sum among the scores."""
CLEAR = "*"
"""Marks a difference whose interval excludes 0."""
INTERVAL_NOTE = "± 95 % interval over prompts (Student's t)"
CHANGE_NOTE = f"{INTERVAL_NOTE}; {CLEAR} excludes 0"
CHANGE_COLUMNS = ("prompts", "score", "before", "after", "difference")
EVALUATION_COLUMNS = ("prompts", "score", "mean")


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95 % interval: infinite where there was one prompt only."""

    mean: float
    half_width: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return abs(self.mean) > self.half_width


@dataclass(frozen=True)
class ScoreChange:
    """One score on one prompt set, before and after; difference is after - before, paired by prompt."""

    set_name: str
    score: str
    prompts: int
    before: Interval
    after: Interval
    difference: Interval


def mean_interval(values: Float64) -> Interval:
    """values: (P,), one a prompt, P >= 1."""
    count = len(values)
    if count == 0:
        raise ValueError("the interval of no values was asked for")
    if count == 1:
        return Interval(float(values[0]), math.inf)
    half_width = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * stats.sem(values))
    return Interval(float(np.mean(values)), half_width)


def score_intervals(evaluated: PromptSetEvaluation) -> dict[str, Interval]:
    """Interval over prompts of each score, by name."""
    return {name: mean_interval(values.mean(axis=1)) for name, values in evaluated.scores.items()}


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The evaluation as metrics: eval/<set>/<score> and, where finite, eval/width95/<set>/<score>.

    Means come first and unseen prompts before others, because the tracker's page keeps this order.
    """
    sets = sorted(evaluation.sets, key=lambda evaluated: evaluated.name != "unseen")
    found = {f"{s.name}/{score}": interval for s in sets for score, interval in score_intervals(s).items()}
    means = {f"eval/{name}": interval.mean for name, interval in found.items()}
    widths = {f"eval/width95/{name}": interval.half_width for name, interval in found.items()}
    return means | {name: width for name, width in widths.items() if math.isfinite(width)}


def begun_late(before: Evaluation) -> str:
    """Says where a comparison does not begin with the run's first policy; empty where it does."""
    if not before.epoch:
        return ""
    return f"before: after epoch {before.epoch}, the first evaluation that the run folder has"


def compare(before: Evaluation, after: Evaluation) -> tuple[ScoreChange, ...]:
    """Every score of every prompt set, in the order of `before`.

    Raises ValueError where the two did not evaluate the same prompts and scores.
    """
    if [evaluated.name for evaluated in before.sets] != [evaluated.name for evaluated in after.sets]:
        raise ValueError("before and after did not evaluate the same prompt sets")
    return tuple(
        change
        for first, last in zip(before.sets, after.sets, strict=True)
        for change in _compare_set(first, last)
    )


def _compare_set(before: PromptSetEvaluation, after: PromptSetEvaluation) -> Iterable[ScoreChange]:
    if before.prompts != after.prompts or set(before.scores) != set(after.scores):
        raise ValueError(f"before and after did not evaluate the same {before.name} prompts and scores")
    for score in before.scores:
        first, last = (evaluated.scores[score].mean(axis=1) for evaluated in (before, after))
        yield ScoreChange(
            set_name=before.name,
            score=score,
            prompts=len(before.prompts),
            before=mean_interval(first),
            after=mean_interval(last),
            difference=mean_interval(last - first),
        )


def _decimals(interval: Interval) -> int:
    """Decimals that show the half-width with two digits; 3 where it is 0 or infinite."""
    if not 0.0 < interval.half_width < math.inf:
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(interval.half_width))))


def format_interval(interval: Interval, decimals: int, sign: str = "") -> str:
    """`0.612 ± 0.021`, with `?` for an infinite half-width; sign "+" shows the sign of a difference."""
    width = f"{interval.half_width:.{decimals}f}" if math.isfinite(interval.half_width) else "?"
    return f"{interval.mean:{sign}.{decimals}f} ± {width}"


def _without_repeats(changes: Sequence[ScoreChange]) -> list[ScoreChange]:
    """Without the trained sum where it is one of the other scores, as with a single reward of weight 1."""
    others = {replace(change, score=TOTAL) for change in changes if change.score != TOTAL}
    return [change for change in changes if change.score != TOTAL or change not in others]


def _cells(change: ScoreChange) -> tuple[str, str, str, str, str]:
    decimals = _decimals(change.difference)
    return (
        f"{change.prompts} {change.set_name}",
        change.score,
        format_interval(change.before, decimals),
        format_interval(change.after, decimals),
        format_interval(change.difference, decimals, "+"),
    )


def _table(title: str, note: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title, "italic"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption, table.caption_justify = Text(note), "left"
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index > 1 else "left", no_wrap=True)
    return table


def _markdown(rows: Iterable[Sequence[str]], columns: Sequence[str], note: str) -> str:
    rules = ["---:" if index > 1 else "---" for index in range(len(columns))]
    lines = ["| " + " | ".join(row) + " |" for row in (columns, rules, *rows)]
    return "\n".join((*lines, "", note)) + "\n"


def headline(changes: Sequence[ScoreChange], score: str) -> str:
    """`gold on 64 unseen prompts: 0.310 → 0.348 (+0.038 ± 0.011)`; empty where there is no such score."""
    found = [change for change in changes if (change.set_name, change.score) == ("unseen", score)]
    if not found:
        return ""
    change, decimals = found[0], _decimals(found[0].difference)
    means = f"{change.before.mean:.{decimals}f} → {change.after.mean:.{decimals}f}"
    difference = format_interval(change.difference, decimals, "+")
    return f"{score} on {change.prompts} unseen prompts: {means} ({difference})"


def change_table(changes: Sequence[ScoreChange], title: str = "", remark: str = "") -> Table:
    """The comparison for a terminal of 80 columns; clear gains are green, clear losses red. remark: below."""
    table = _table(title, f"{CHANGE_NOTE}\n{remark}".strip(), CHANGE_COLUMNS)
    for change in _without_repeats(changes):
        *words, difference = _cells(change)
        clear = change.difference.excludes_zero
        style = ("green" if change.difference.mean > 0 else "red") if clear else ""
        marked = Text(f"{difference} {CLEAR if clear else ' '}", style=style)
        table.add_row(*map(Text, words), marked)
    return table


def change_markdown(changes: Sequence[ScoreChange], remark: str = "") -> str:
    """The comparison as a Markdown table with a note and the remark below it; clear differences are bold."""

    def row(change: ScoreChange) -> tuple[str, ...]:
        *words, difference = _cells(change)
        return (*words, f"**{difference}** \\{CLEAR}" if change.difference.excludes_zero else difference)

    note = CHANGE_NOTE.replace(CLEAR, f"\\{CLEAR}")
    note = f"{note}\n\n{remark}" if remark else note
    return _markdown(map(row, _without_repeats(changes)), CHANGE_COLUMNS, note)


def _evaluation_rows(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    return [
        (f"{len(prompts.prompts)} {prompts.name}", score, format_interval(interval, _decimals(interval)))
        for prompts in evaluation.sets
        for score, interval in score_intervals(prompts).items()
    ]


def evaluation_table(evaluation: Evaluation, title: str = "") -> Table:
    """One evaluation for a terminal."""
    table = _table(title, INTERVAL_NOTE, EVALUATION_COLUMNS)
    for row in _evaluation_rows(evaluation):
        table.add_row(*map(Text, row))
    return table


def evaluation_markdown(evaluation: Evaluation) -> str:
    """One evaluation as a Markdown table with a note below it."""
    return _markdown(_evaluation_rows(evaluation), EVALUATION_COLUMNS, INTERVAL_NOTE)
