"""The contract of a scorer, one finding a check: for those who write one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.reward import (
    CHECK_PROMPTS,
    KINDS,
    Kind,
    Measured,
    Span,
    disagreement,
    methods_of,
)
from reward_service.contract.scorer import AnyScorer, PromptImages, is_deterministic, prompts_of
from reward_service.contract.settings import ServedReward

_COUNTS = (5, 2, 1)
_SIZES = ((64, 64), (96, 48))
_LARGE = 1e3
_SMALL = 1e-3
_SLOW_S = 1.0
_MANY = 8


class Verdict(Enum):
    """What became of a check."""

    OK = "ok"
    NOTE = "note"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One check: its name, verdict, what was found, and advice (empty where none is needed)."""

    check: str
    verdict: Verdict
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class _Subject:
    """A scorer under test. pairs: asked a group, 0 = all. groups: of up to 5, 2 and 1 images, of two sizes.

    span: opened around each call of the scorer.
    """

    scorer: AnyScorer
    pairs: int
    how: Kind[Any]
    groups: tuple[PromptImages, ...]
    span: Span

    def measure(self, groups: Sequence[PromptImages]) -> list[Measured]:
        """Ask about copies of the groups, so that no call can change what the next one sees."""
        with self.span():
            return self.how.measure([(prompt, images.copy()) for prompt, images in groups])


@dataclass(frozen=True)
class _Check:
    """advice: what to do where it fails. repeats: it compares answers that must be the same twice."""

    name: str
    find: Callable[[_Subject], Finding]
    advice: str
    repeats: bool = False


def check_reward(served: ServedReward, prompts: Sequence[str], span: Span = nullcontext) -> list[Finding]:
    """Build the scorer and make every check, in the order of CHECKS. Those after the first two are skipped
    where it gives no sound answers: they would fail of that.

    prompts: to test with; where empty, the scorer's `check_prompts`, or made-up ones. span: opened around
    each call of the scorer.
    """
    try:
        with span():
            scorer = build_scorer(served)
    except RewardError as error:
        return [Finding("built", Verdict.FAILED, str(error))]
    (method,) = methods_of(scorer)
    kind, how = KINDS[method]
    name = type(scorer).__name__
    groups = _made_up_groups(prompts or prompts_of(scorer, CHECK_PROMPTS), served.pairs)
    subject = _Subject(scorer, served.pairs, how(name, scorer, served.pairs), groups, span)
    findings = [Finding("built", Verdict.OK, f"{kind}, version {scorer.version!r}, {_digest(scorer)}")]
    for check in CHECKS:
        findings.append(_made(check, subject, answers=findings[1:3]))
    return findings


def _made(check: _Check, subject: _Subject, answers: Sequence[Finding]) -> Finding:
    if any(finding.verdict is Verdict.FAILED for finding in answers):
        return Finding(check.name, Verdict.SKIPPED, "it gives no sound answers")
    if check.repeats and not is_deterministic(subject.scorer):
        return Finding(check.name, Verdict.SKIPPED, "declared deterministic = False")
    try:
        return check.find(subject)
    except RewardError as error:
        return Finding(check.name, Verdict.FAILED, str(error), check.advice)


def _answers(subject: _Subject) -> Finding:
    started = time.perf_counter()
    subject.measure(subject.groups[-1:])
    return Finding("answers", Verdict.OK, f"the first call took {time.perf_counter() - started:.2f} s")


def _finite(subject: _Subject) -> Finding:
    subject.measure(subject.groups)
    for group in subject.groups:
        subject.measure([group])
    counts = ", ".join(map(str, sorted({len(images) for _, images in subject.groups})))
    sizes = ", ".join(f"{height}x{width}" for height, width in _SIZES)
    return Finding("finite, one each", Verdict.OK, f"groups of {counts} images of {sizes}")


def _repeats(subject: _Subject) -> Finding:
    pairs = zip(subject.measure(subject.groups), subject.measure(subject.groups), strict=True)
    return _equal(
        subject, "same again", list(pairs), "gives other numbers for the same images when asked again"
    )


def _company(subject: _Subject) -> Finding:
    together = subject.measure(subject.groups)
    alone = [measured for group in subject.groups for measured in subject.measure([group])]
    same = list(zip(together, alone, strict=True))
    prompt, images = subject.groups[0]
    if methods_of(subject.scorer) == ["score"]:
        singles = [subject.measure([(prompt, image[None])])[0].rewards[0] for image in images]
        rewards = np.array(singles)
        same.append((together[0], Measured(rewards, rewards[:, None] - rewards[None, :], 0.0)))
    return _equal(subject, "batch size", same, "scores an image otherwise when others are in the call")


def _order(subject: _Subject) -> Finding:
    group = subject.groups[0]
    (straight,) = subject.measure([group])
    with subject.span():
        turned = subject.how.turned(group[0], group[1].copy())
    return _equal(
        subject, "order", [(straight, turned)], "gives differences that depend on the images' order or place"
    )


def _thread(subject: _Subject) -> Finding:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(subject.measure, subject.groups[:1]).result()
    return Finding("another thread", Verdict.OK, "answers in a thread other than the one that loaded it")


def _magnitude(subject: _Subject) -> Finding:
    measured = subject.measure(subject.groups)
    values = np.concatenate([one.rewards for one in measured])
    within = np.concatenate([one.differences[np.triu_indices(len(one.rewards), 1)] for one in measured])
    typical = float(np.sqrt(np.mean(within**2)))
    detail = f"{values.min():.4g} to {values.max():.4g}; difference within a group {typical:.3g}"
    if typical == 0.0:
        advice = "All test images get the same number: a group of such teaches nothing. Try real images."
        return Finding("magnitude", Verdict.NOTE, detail, advice)
    if not _SMALL <= typical <= _LARGE:
        advice = (
            f"Weights scale it: weight {1.0 / typical:.1g} brings differences on these images to about 1."
        )
        return Finding("magnitude", Verdict.NOTE, detail, advice)
    return Finding("magnitude", Verdict.OK, detail)


def _time(subject: _Subject) -> Finding:
    prompt, images = subject.groups[0]
    count = len(images) if 0 < subject.pairs < _MANY - 1 else _MANY
    many = np.concatenate([images, images])[:count]
    each = {len(group): _seconds_each(subject, (prompt, group)) for group in (images[:2], many)}
    shown = ", ".join(
        f"{seconds * 1e3:.1f} ms an image in groups of {count}" for count, seconds in each.items()
    )
    if max(each.values()) > _SLOW_S:
        advice = "Slow scorers want more replicas, a GPU share, or fewer `pairs`; and a `timeout_s` to match."
        return Finding("time", Verdict.NOTE, shown, advice)
    return Finding("time", Verdict.OK, shown)


CHECKS: tuple[_Check, ...] = (
    _Check(
        "answers", _answers, "Look at the error: the scorer, its weights or its endpoint do not work here."
    ),
    _Check(
        "finite, one each",
        _finite,
        "Return finite float64 of the stated shape (a judge: wins - wins.T); raise an error instead of NaN.",
    ),
    _Check(
        "same again",
        _repeats,
        "Switch off dropout and sampling, fix seeds; or declare deterministic = False in the class.",
        repeats=True,
    ),
    _Check(
        "batch size",
        _company,
        "Score each image by itself: no statistics over the batch; pad texts to a fixed length.",
        repeats=True,
    ),
    _Check("order", _order, "Ask in both orders and halve the difference.", repeats=True),
    _Check("another thread", _thread, "Replicas call from a thread: keep no state bound to the main one."),
    _Check("magnitude", _magnitude, ""),
    _Check("time", _time, ""),
)


def _equal(
    subject: _Subject, check: str, pairs: Sequence[tuple[Measured, Measured]], complaint: str
) -> Finding:
    """Raises RewardError where two answers differ by more than a run allows."""
    name = type(subject.scorer).__name__
    worst = max(disagreement(name, first, second, complaint) for first, second in pairs)
    return Finding(check, Verdict.OK, f"numbers differ by at most {worst:.1g}")


def _seconds_each(subject: _Subject, group: PromptImages) -> float:
    started = time.perf_counter()
    subject.measure([group])
    return (time.perf_counter() - started) / len(group[1])


def _digest(scorer: AnyScorer) -> str:
    if scorer.digest:
        return f"digest {scorer.digest[:12]}"
    return "no digest: changed weights could not be told apart"


def _made_up_groups(prompts: Sequence[str], pairs: int) -> tuple[PromptImages, ...]:
    """pairs: asked a group, 0 = all; so few pairs connect so few images."""
    most = pairs + 1 if pairs else _COUNTS[0]
    shapes = [(min(count, most), size) for size in _SIZES for count in _COUNTS]
    return tuple(
        (prompts[row % len(prompts)], _images(row, count, *size)) for row, (count, size) in enumerate(shapes)
    )


def _images(seed: int, count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Images of a tint, a slope of light and noise, each with its own share of them."""
    rng = np.random.default_rng(seed)
    tint = rng.uniform(0, 255, (count, 1, 1, 3))
    slope = np.linspace(-60, 60, width)[None, None, :, None] * rng.uniform(-1, 1, (count, 1, 1, 1))
    noise = rng.normal(0, 1, (count, height, width, 3)) * rng.uniform(0, 60, (count, 1, 1, 1))
    return np.clip(tint + slope + noise, 0, 255).astype(np.uint8)
