"""What is said of runs: means with intervals over seeds, and instability.

All of it is a function of the rows of a study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studies.results import Row

CONFIDENCE = 0.95
DRAWS = 10_000
FEWEST = 3
"""Seeds that give an interval."""

Run = Sequence[Row]
"""The rows of one cell and seed, by epoch."""
Measure = Callable[[Row], float]


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds, and the ends of its interval: NaN of fewer than FEWEST."""

    mean: float
    low: float
    high: float
    count: int


def runs_of(rows: Sequence[Row]) -> dict[str, dict[int, list[Row]]]:
    """By cell and seed, in the order of the rows."""
    found: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.cell, {}).setdefault(row.seed, []).append(row)
    return found


def interval(values: Sequence[float]) -> Interval:
    """Percentile bootstrap over seeds (Efron 1979): the mean of as many values, drawn with replacement.

    With five seeds or fewer it is narrower than the truth: it cannot know of seeds unlike those seen. Of two
    it would be the two themselves.
    """
    given = np.asarray(values, dtype=np.float64)
    if len(given) < FEWEST:
        return Interval(float(given.mean()), math.nan, math.nan, len(given))
    draws = np.random.default_rng(0).choice(given, size=(DRAWS, len(given))).mean(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(float(given.mean()), float(low), float(high), len(given))


def unseen_proxy(row: Row) -> float:
    """The trained reward, or what it was made of, on prompts never trained on."""
    return row.unseen_proxy


def unseen_gold(row: Row) -> float:
    """The reward that only evaluates, on the same prompts."""
    return row.unseen_gold


def seen_proxy(row: Row) -> float:
    """The proxy on prompts of the training."""
    return row.seen_proxy


def passes(row: Row) -> float:
    """Of one latent through the network for training so far; forward 1, backward 2."""
    return row.passes


def queries(row: Row) -> float:
    """Images scored for training so far."""
    return row.queries


def at_end(run: Run, measure: Measure) -> float:
    """In the last row."""
    return measure(run[-1])


def at_best(run: Run, measure: Measure) -> float:
    """In the row of the best gold score on unseen prompts, which is the checkpoint that one would keep."""
    return measure(max(run, key=unseen_gold))


def gain(run: Run, measure: Measure) -> float:
    """At the end over the beginning."""
    return measure(run[-1]) - measure(run[0])


def largest_drawdown(values: Sequence[float]) -> float:
    """How far a run has fallen below its best so far, at most."""
    given = np.asarray(values)
    return float(np.max(np.maximum.accumulate(given) - given))


def is_unstable(values: Sequence[float]) -> bool:
    """Whether a run ends with less than half of the largest gain that it had over its beginning. One that has
    never gained is unstable where it ends below its beginning."""
    first, last = values[0], values[-1]
    return last < first + (max(values) - first) / 2


def paired(
    first: Mapping[int, Run], second: Mapping[int, Run], measure: Callable[[Run], float]
) -> Interval | None:
    """First less second over the seeds that both have: the same prompts and noise. None without such."""
    seeds = sorted(first.keys() & second.keys())
    return interval([measure(first[seed]) - measure(second[seed]) for seed in seeds]) if seeds else None
