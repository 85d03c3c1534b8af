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
from driver.report.evaluation import TOTAL, Evaluation, PromptSetEvaluation
from driver.report.markdown import plain_markdown

CONFIDENCE = 0.95
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
    """One score on one prompt set, before and after; difference is after - before, paired by prompt.

    prompts: those that both evaluated. since: finished epochs before. Where the two cannot be compared,
    before and difference are None and `why` says why not. is_relative: a judge compared a prompt's images;
    then before and after are 0 and say nothing, and difference is its mean preference for the image after,
    or None where it was not asked.
    """

    set_name: str
    score: str
    prompts: int
    after: Interval
    before: Interval | None = None
    difference: Interval | None = None
    since: int = 0
    why: str = ""
    is_relative: bool = False

    @property
    def is_clear(self) -> bool:
        """Whether the difference's interval excludes 0."""
        return self.difference is not None and self.difference.excludes_zero


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


def compare(evaluations: Sequence[Evaluation]) -> tuple[ScoreChange, ...]:
    """Every score of every prompt set of the last evaluation, each with the first one that it can be compared
    with: of the same prompts, by the same version of the reward. At least one, oldest first.
    """
    *earlier, last = evaluations
    return tuple(_change(earlier, evaluated, score) for evaluated in last.sets for score in evaluated.scores)


def _change(earlier: Sequence[Evaluation], after: PromptSetEvaluation, score: str) -> ScoreChange:
    reasons = []
    for evaluation in earlier:
        before = evaluation.of(after.name)
        if before is None or (why := after.why_not_like(before, score)):
            reasons.append(f"{after.name} prompts were not evaluated" if before is None else why)
            continue
        rows, others = map(list, zip(*after.same_prompts(before), strict=True))
        last, first = after.scores[score][rows].mean(axis=1), before.scores[score][others].mean(axis=1)
        preferred = after.preferences.get(score)
        is_relative = preferred is not None or (_is_relative(after, score) and _is_relative(before, score))
        gained = last - first if preferred is None else preferred[rows].mean(axis=1)
        return ScoreChange(
            set_name=after.name,
            score=score,
            prompts=len(rows),
            after=mean_interval(last),
            before=mean_interval(first),
            difference=None if is_relative and preferred is None else mean_interval(gained),
            since=evaluation.epoch,
            is_relative=is_relative,
        )
    alone = mean_interval(after.scores[score].mean(axis=1))
    why = reasons[0] if reasons else "there is no evaluation before"
    return ScoreChange(
        after.name, score, len(after.prompts), alone, why=why, is_relative=_is_relative(after, score)
    )


def _is_relative(evaluated: PromptSetEvaluation, score: str) -> bool:
    return not evaluated.has_level(score) and bool(evaluated.scores[score].any())


def history(evaluations: Sequence[Evaluation], set_name: str, score: str) -> tuple[float, ...]:
    """Means of a score in the last evaluation and in those that it can be compared with, oldest first."""
    found = [one for evaluation in evaluations if (one := evaluation.of(set_name)) and score in one.scores]
    return tuple(
        float(one.scores[score].mean())
        for one in found
        if one is found[-1] or not found[-1].why_not_like(one, score)
    )


def remarks(changes: Sequence[ScoreChange]) -> list[str]:
    """What a reader has to know: which rows do not begin with the run, or cannot be compared."""
    late: dict[int, list[str]] = {}
    apart: dict[str, list[str]] = {}
    judged, asked = list[str](), list[str]()
    for change in _without_repeats(changes):
        row = f"{change.score} ({change.set_name})"
        if change.is_relative:
            (judged if change.difference is None else asked).append(row)
        elif change.why:
            apart.setdefault(change.why, []).append(row)
        elif change.since:
            late.setdefault(change.since, []).append(row)
    compares = "it compares a prompt's images, so their mean is 0; evaluate.py (no --suite) asks about both"
    prefers = "by how much it finds the image after better than the one before, of the same noise"
    return [
        *([f"{', '.join(judged)}: {compares}"] if judged else []),
        *([f"{', '.join(asked)}: {prefers}"] if asked else []),
        *(
            f"{', '.join(rows)}: before is after epoch {epoch}, the first evaluation there is of these "
            "prompts by this version"
            for epoch, rows in late.items()
        ),
        *(f"{', '.join(rows)}: no difference, because {why}" for why, rows in apart.items()),
    ]


def _decimals(interval: Interval | None) -> int:
    """Decimals that show the half-width with two digits; 3 where it is 0, infinite or unknown."""
    if interval is None or not 0.0 < interval.half_width < math.inf:
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(interval.half_width))))


def format_interval(interval: Interval | None, decimals: int, sign: str = "") -> str:
    """`0.612 ± 0.021`, with `?` for an infinite half-width, `-` for None; sign "+" shows a sign."""
    if interval is None:
        return "-"
    width = f"{interval.half_width:.{decimals}f}" if math.isfinite(interval.half_width) else "?"
    return f"{interval.mean:{sign}.{decimals}f} ± {width}"


def _without_repeats(changes: Sequence[ScoreChange]) -> list[ScoreChange]:
    """Without the trained sum where it is one of the other scores, as with a single reward of weight 1."""
    others = {replace(change, score=TOTAL) for change in changes if change.score != TOTAL}
    return [change for change in changes if change.score != TOTAL or change not in others]


def _cells(change: ScoreChange) -> tuple[str, str, str, str, str]:
    decimals = _decimals(change.difference or change.after)
    names = (f"{change.prompts} {change.set_name}", change.score)
    if change.is_relative:
        return (*names, "-", "-", format_interval(change.difference, decimals, "+"))
    return (
        *names,
        format_interval(change.before, decimals),
        format_interval(change.after, decimals),
        format_interval(change.difference, decimals, "+"),
    )


def _table(title: str, note: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_style="italic", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.caption, table.caption_style, table.caption_justify = note, "none", "left"
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index > 1 else "left", no_wrap=True)
    return table


def _markdown(rows: Iterable[Sequence[str]], columns: Sequence[str], note: str, words: int = 2) -> str:
    """words: how many columns hold words; those after them hold numbers."""
    rules = ["---" if index < words else "---:" for index in range(len(columns))]
    lines = ["| " + " | ".join(row) + " |" for row in (columns, rules, *rows)]
    return "\n".join((*lines, "", note)) + "\n"


def headline(changes: Sequence[ScoreChange], score: str) -> str:
    """`gold on 64 unseen prompts: 0.310 → 0.348 (+0.038 ± 0.011)`, or its mean alone where nothing can be
    compared; empty where there is no such score, or a judge's that has no level."""
    found = [change for change in changes if (change.set_name, change.score) == ("unseen", score)]
    if not found or found[0].is_relative:
        return ""
    change = found[0]
    name = f"{score} on {change.prompts} unseen prompts"
    if change.before is None:
        return f"{name}: {format_interval(change.after, _decimals(change.after))}"
    decimals = _decimals(change.difference)
    means = f"{change.before.mean:.{decimals}f} → {change.after.mean:.{decimals}f}"
    return f"{name}: {means} ({format_interval(change.difference, decimals, '+')})"


def change_table(changes: Sequence[ScoreChange], title: str = "", notes: Sequence[str] = ()) -> Table:
    """The comparison for a terminal of 80 columns; clear gains are green, clear losses red. notes: below."""
    table = _table(title, "\n".join([CHANGE_NOTE, *remarks(changes), *notes]), CHANGE_COLUMNS)
    for change in _without_repeats(changes):
        *words, difference = _cells(change)
        style = ""
        if change.difference is not None and change.is_clear:
            style = "green" if change.difference.mean > 0 else "red"
        marked = Text(f"{difference} {CLEAR if change.is_clear else ' '}", style=style)
        table.add_row(*words, marked)
    return table


def change_markdown(changes: Sequence[ScoreChange], notes: Sequence[str] = ()) -> str:
    """The comparison as a Markdown table with notes below it; clear differences are bold."""

    def row(change: ScoreChange) -> tuple[str, ...]:
        *words, difference = _cells(change)
        words = list(map(plain_markdown, words))
        return (*words, f"**{difference}** \\{CLEAR}" if change.is_clear else difference)

    below = "\n\n".join(
        [CHANGE_NOTE.replace(CLEAR, f"\\{CLEAR}"), *remarks(changes), *map(plain_markdown, notes)]
    )
    return _markdown(map(row, _without_repeats(changes)), CHANGE_COLUMNS, below)


def side_by_side_markdown(changes: Sequence[ScoreChange]) -> str:
    """Differences alone as a Markdown table: a row for each score, a column for each prompt set."""
    shown = _without_repeats(changes)
    scores = dict.fromkeys(change.score for change in shown)
    sets = dict.fromkeys(change.set_name for change in shown)
    cells = {(change.score, change.set_name): _cells(change)[-1] for change in shown}
    rows = [(plain_markdown(score), *(cells.get((score, name), "-") for name in sets)) for score in scores]
    return _markdown(rows, ("score", *map(plain_markdown, sets)), INTERVAL_NOTE, words=1)


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
        table.add_row(*row)
    return table


def evaluation_markdown(evaluation: Evaluation) -> str:
    """One evaluation as a Markdown table with a note below it."""
    rows = [tuple(map(plain_markdown, row)) for row in _evaluation_rows(evaluation)]
    return _markdown(rows, EVALUATION_COLUMNS, INTERVAL_NOTE)
