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
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from common.trajectory import Float64
from driver.report.evaluation import Evaluation, PromptSetEvaluation

CONFIDENCE = 0.95
TOTAL = "reward"
"""Name of the trained sum among the scores."""
CLEAR = "*"
"""Marks a difference whose interval excludes 0."""
INTERVAL_NOTE = "± 95 % interval over prompts (Student's t)"
CHANGE_NOTE = f"{INTERVAL_NOTE}; {CLEAR} excludes 0"


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


def student_t_probability(t: float, freedom: int) -> float:
    """P(|X| <= t) for X of Student's t distribution with `freedom` >= 1 degrees of freedom, t >= 0.

    The finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine_squared = math.cos(angle) ** 2
    odd = freedom % 2
    term, total = 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine_squared * (power + 1) / (power + 2)
    if odd:
        return 2.0 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    return math.sin(angle) * total


@lru_cache(maxsize=256)
def student_t_quantile(freedom: int) -> float:
    """The t that |X| stays below with probability 95 %, by bisection; infinite for 0 degrees of freedom."""
    if freedom == 0:
        return math.inf
    low, high = 0.0, 16.0
    for _ in range(80):
        middle = (low + high) / 2.0
        if student_t_probability(middle, freedom) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def mean_interval(values: Float64) -> Interval:
    """values: (P,), one a prompt, P >= 1."""
    count = len(values)
    if count == 0:
        raise ValueError("the interval of no values was asked for")
    if count == 1:
        return Interval(float(values[0]), math.inf)
    deviation = float(np.std(values, ddof=1))
    return Interval(float(np.mean(values)), student_t_quantile(count - 1) * deviation / math.sqrt(count))


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


def _decimals(intervals: Iterable[Interval]) -> int:
    """Decimals that show the largest finite half-width with two digits."""
    shown = [interval.half_width for interval in intervals if 0.0 < interval.half_width < math.inf]
    return min(6, max(0, 1 - math.floor(math.log10(max(shown))))) if shown else 3


def format_interval(interval: Interval, decimals: int, sign: str = "") -> str:
    """`0.612 ± 0.021`, with `?` for an infinite half-width; sign "+" shows the sign of a difference."""
    width = f"{interval.half_width:.{decimals}f}" if math.isfinite(interval.half_width) else "?"
    return f"{interval.mean:{sign}.{decimals}f} ± {width}"


def _told_once(changes: tuple[ScoreChange, ...]) -> tuple[ScoreChange, ...]:
    """Without the trained sum where it is one of the other scores, as with a single reward of weight 1."""
    others = {(c.set_name, c.before, c.after, c.difference) for c in changes if c.score != TOTAL}
    return tuple(
        c for c in changes if (c.set_name, c.before, c.after, c.difference) not in others or c.score != TOTAL
    )


def _change_rows(changes: tuple[ScoreChange, ...]) -> list[tuple[str, ...]]:
    """Cells of each change; one score has the same decimals everywhere."""
    intervals: dict[str, list[Interval]] = {change.score: [] for change in changes}
    for change in changes:
        intervals[change.score].append(change.difference)
    decimals = {score: _decimals(found) for score, found in intervals.items()}
    return [
        (
            f"{change.prompts} {change.set_name}",
            change.score,
            format_interval(change.before, decimals[change.score]),
            format_interval(change.after, decimals[change.score]),
            format_interval(change.difference, decimals[change.score], "+")
            + (f" {CLEAR}" if change.difference.excludes_zero else "  "),
        )
        for change in changes
    ]


def _table(title: str, note: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption, table.caption_justify = note, "left"
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index > 1 else "left", no_wrap=True)
    return table


def headline(changes: tuple[ScoreChange, ...], score: str, set_name: str = "unseen") -> str:
    """One change in a line, `gold on 64 unseen prompts: 0.310 → 0.348 (+0.038 ± 0.011)`; empty without it."""
    for change in changes:
        if (change.set_name, change.score) == (set_name, score):
            decimals = _decimals([change.difference])
            means = f"{change.before.mean:.{decimals}f} → {change.after.mean:.{decimals}f}"
            difference = format_interval(change.difference, decimals, "+")
            return f"{score} on {change.prompts} {set_name} prompts: {means} ({difference})"
    return ""


def change_table(changes: tuple[ScoreChange, ...], title: str = "", remark: str = "") -> Table:
    """The comparison for a terminal of 80 columns; clear gains are green, clear losses red. remark: below."""
    changes = _told_once(changes)
    note = "\n".join(filter(None, (CHANGE_NOTE, remark)))
    table = _table(title, note, ("prompts", "score", "before", "after", "difference"))
    for change, row in zip(changes, _change_rows(changes), strict=True):
        clear = "green" if change.difference.mean > 0 else "red"
        style = clear if change.difference.excludes_zero else ""
        table.add_row(*row[:4], Text(row[4], style=style))
    return table


def change_markdown(changes: tuple[ScoreChange, ...], remark: str = "") -> str:
    """The comparison as a Markdown table with a note and the remark below it; clear differences are bold."""
    changes = _told_once(changes)
    lines = ["| prompts | score | before | after | difference |", "| --- | --- | ---: | ---: | ---: |"]
    for change, row in zip(changes, _change_rows(changes), strict=True):
        figures = row[4].removesuffix(CLEAR).strip()
        difference = f"**{figures}** \\{CLEAR}" if change.difference.excludes_zero else figures
        lines.append("| " + " | ".join((*row[:4], difference)) + " |")
    below = [CHANGE_NOTE.replace(CLEAR, "\\" + CLEAR), *(["", remark] if remark else [])]
    return "\n".join((*lines, "", *below)) + "\n"


def _evaluation_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    return [
        (
            f"{len(evaluated.prompts)} {evaluated.name}",
            score,
            format_interval(interval, _decimals([interval])),
        )
        for evaluated in evaluation.sets
        for score, interval in score_intervals(evaluated).items()
    ]


def evaluation_table(evaluation: Evaluation, title: str = "") -> Table:
    """One evaluation for a terminal."""
    table = _table(title, INTERVAL_NOTE, ("prompts", "score", "mean"))
    for row in _evaluation_rows(evaluation):
        table.add_row(*row)
    return table


def evaluation_markdown(evaluation: Evaluation) -> str:
    """One evaluation as a Markdown table with a note below it."""
    lines = ["| prompts | score | mean |", "| --- | --- | ---: |"]
    lines += ["| " + " | ".join(row) + " |" for row in _evaluation_rows(evaluation)]
    return "\n".join((*lines, "", INTERVAL_NOTE)) + "\n"
