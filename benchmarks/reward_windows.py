"""What clients saw while something was changed: lost groups, mixed versions, stalls. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.reward_clients import Asked
from common.trajectory import GroupScore, ScorerStamp
from reward_service.contract.results import RewardScores

TOLERANCE = 1e-4
"""Cosines of a batch differ from those of one group alone by rounding; versions differ by far more."""

Expected = Mapping[tuple[ScorerStamp, str], RewardScores]
"""What each version says about each prompt's pictures, computed without a service."""


@dataclass(frozen=True)
class Window:
    """One change: its groups are those that waited at any moment from begin_at to end_at.

    done_at: when all processes were as they are to be. busy_s: what scorers worked for the clients meanwhile.
    spare_s: core seconds of the machine that were idle or went to work of lower priority. new: stamp of the
    scores after it. old: before it.
    """

    name: str
    begin_at: float
    done_at: float
    end_at: float
    busy_s: float
    spare_s: float
    new: ScorerStamp
    old: ScorerStamp


@dataclass(frozen=True)
class Seen:
    """Of one window, in seconds.

    stall_s, median_s: longest and median wait of a client for a group, retries included. settled_s: from its
    begin to the last answer of the old version. done_s: until all processes were as they are to be. at_work:
    scorers at work at once, on average. spare_cores: cores that were idle or did work of lower priority.
    """

    groups: int
    lost: int
    mixed: int
    stall_s: float
    median_s: float
    settled_s: float
    done_s: float
    at_work: float
    spare_cores: float


def seen_in(window: Window, asked: Sequence[Asked], expected: Expected) -> Seen:
    """What the clients saw in a window. Needs at least one group in it."""
    there = [one for one in asked if one.answered_at >= window.begin_at and one.sent_at <= window.end_at]
    scored = [(one, one.answer) for one in there if isinstance(one.answer, GroupScore)]
    waits = [one.wait_s for one in there]
    old = [one.answered_at for one, score in scored if score.scorers != (window.new,)]
    may_be = frozenset([window.old, window.new])
    return Seen(
        groups=len(there),
        lost=len(there) - len(scored),
        mixed=sum(is_mixed(one.prompt, score, may_be, expected) for one, score in scored),
        stall_s=max(waits),
        median_s=statistics.median(waits),
        settled_s=max([0.0, *(moment - window.begin_at for moment in old)]),
        done_s=window.done_at - window.begin_at,
        at_work=window.busy_s / (window.end_at - window.begin_at),
        spare_cores=window.spare_s / (window.end_at - window.begin_at),
    )


def is_mixed(prompt: str, score: GroupScore, may_be: frozenset[ScorerStamp], expected: Expected) -> bool:
    """Whether any number of a score is not of the one version that it says it is of."""
    if len(score.scorers) != 1 or score.scorers[0] not in may_be:
        return True
    part = expected[score.scorers[0], prompt]
    return not (_same(score.rewards, part.rewards) and _same(score.differences, part.differences))


def told_apart(expected: Expected) -> float:
    """By how much any two versions differ at least, in the picture of a group in which they differ most.

    The test for mixed versions means something only where this is well above TOLERANCE.
    """
    stamps = sorted({stamp for stamp, _ in expected}, key=str)
    prompts = {prompt for _, prompt in expected}
    return min(
        float(np.abs(expected[one, prompt].rewards - expected[other, prompt].rewards).max())
        for row, one in enumerate(stamps)
        for other in stamps[:row]
        for prompt in prompts
    )


def all_new(asked: Sequence[Asked], new: ScorerStamp, since: float, clients: int) -> bool:
    """Whether every client has an answer to a question after `since`, and all such are of the new version."""
    late = [one for one in asked if one.sent_at >= since]
    fresh = all(isinstance(one.answer, GroupScore) and one.answer.scorers == (new,) for one in late)
    return fresh and len({one.client for one in late}) == clients


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0.0, atol=TOLERANCE))
