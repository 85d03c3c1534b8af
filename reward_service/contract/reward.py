"""One reward: groups of images in, scores out. Scorers of three kinds become one `Reward` here."""

from __future__ import annotations

import hashlib
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from common.hidden import hide
from common.trajectory import Float64, RewardScores, ScorerStamp
from reward_service.contract.pairs import plan_pairs, solve_pairs
from reward_service.contract.results import Outcome, RewardFailure, antisymmetric
from reward_service.contract.scorer import (
    NEEDED,
    AnyScorer,
    PairsScorer,
    PairwiseScorer,
    PromptImages,
    Scorer,
    is_deterministic,
    is_paid,
    prompts_of,
    why_narrow,
)

_RELATIVE = 1e-3
_LARGEST = 1e100
"""Largest number that a scorer may return: differences are squared, and must stay finite."""

S = TypeVar("S")

CHECK_PROMPTS = (
    'a sign that says "OPEN"',
    'a red apple beside a "SALE" label',
    'a blue house named "Home"',
)
"""Each names a text in quotes, which a scorer of text in images asks for."""

_CHECK_IMAGES = len(CHECK_PROMPTS)

Span = Callable[[], AbstractContextManager[object]]
"""Opened around each batch that the scorer is given."""


@dataclass(frozen=True)
class Measured:
    """Rewards float64 (B,), differences float64 (B, B) and residual of one group, as in RewardScores."""

    rewards: Float64
    differences: Float64
    residual: float


class Kind(ABC, Generic[S]):
    """How scorers of one kind are asked. pairs: pairs a group that a judge of pairs is asked; 0 = all."""

    def __init__(self, name: str, scorer: S, pairs: int) -> None:
        self._name = name
        self._scorer = scorer
        self._pairs = pairs

    @abstractmethod
    def measure(self, groups: Sequence[PromptImages]) -> list[Measured]:
        """Ask about groups together. Raises RewardError naming the scorer and what it did."""

    def turned(self, prompt: str, images: NDArray[np.uint8]) -> Measured:
        """The same group, asked the other way round."""
        (found,) = self.measure([(prompt, images[::-1].copy())])
        return Measured(found.rewards[::-1], found.differences[::-1, ::-1], found.residual)


class Pointwise(Kind[Scorer]):
    """A number an image: one call of the scorer for each image size among the groups."""

    def measure(self, groups: Sequence[PromptImages]) -> list[Measured]:
        """Ask about groups together."""
        rewards: dict[int, Float64] = {}
        for shape in dict.fromkeys(images.shape[1:] for _, images in groups):
            rows = [row for row, (_, images) in enumerate(groups) if images.shape[1:] == shape]
            prompts = [groups[row][0] for row in rows for _ in groups[row][1]]
            scores = self._score(prompts, np.concatenate([groups[row][1] for row in rows]))
            ends = np.cumsum([len(groups[row][1]) for row in rows])
            rewards.update(zip(rows, np.split(scores, ends[:-1]), strict=True))
        return [
            Measured(rewards[row], rewards[row][:, None] - rewards[row][None, :], 0.0)
            for row in range(len(groups))
        ]

    def _score(self, prompts: list[str], images: NDArray[np.uint8]) -> Float64:
        answer = ask(self._name, lambda: self._scorer.score(prompts, images))
        return numbers(self._name, answer, (len(prompts),), "one finite number an image")


class Pairwise(Kind[PairwiseScorer]):
    """The whole matrix at once, a call a group. Its rewards are least squares: the row means."""

    def measure(self, groups: Sequence[PromptImages]) -> list[Measured]:
        """Ask about each group."""
        return [self._compare(prompt, images.copy()) for prompt, images in groups]

    def _compare(self, prompt: str, images: NDArray[np.uint8]) -> Measured:
        count = len(images)
        answer = ask(self._name, lambda: self._scorer.compare(prompt, images))
        matrix = numbers(self._name, answer, (count, count), "a finite matrix of differences")
        matrix = antisymmetric(matrix, f"Scorer {self._name!r}: its")
        rewards = matrix.mean(axis=1)
        misses = (matrix - (rewards[:, None] - rewards[None, :]))[np.triu_indices(count, k=1)]
        residual = float(np.sqrt(np.mean(misses**2))) if len(misses) else 0.0
        return Measured(rewards, matrix, residual)


class Pairs(Kind[PairsScorer]):
    """Single pairs, planned here, a call a group. The plan depends on the group's content alone."""

    def measure(self, groups: Sequence[PromptImages]) -> list[Measured]:
        """Ask about each group."""
        return [self._duel(prompt, images, self._plan(prompt, images)) for prompt, images in groups]

    def turned(self, prompt: str, images: NDArray[np.uint8]) -> Measured:
        """The same group, with the images of each pair in the other place."""
        return self._duel(prompt, images, self._plan(prompt, images)[:, ::-1])

    def _plan(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        content = hashlib.sha256(prompt.encode() + b"\0")
        content.update(images.tobytes())
        return plan_pairs(len(images), self._pairs, int.from_bytes(content.digest()[:8], "big"))

    def _duel(self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]) -> Measured:
        if not len(pairs):
            return Measured(np.zeros(len(images)), np.zeros((len(images),) * 2), 0.0)
        images = images.copy()
        answer = ask(self._name, lambda: self._scorer.compare_pairs(prompt, images, pairs.copy()))
        answers = numbers(self._name, answer, (len(pairs),), "one finite number a pair")
        return Measured(*solve_pairs(len(images), pairs, answers))


KINDS: Mapping[str, tuple[str, type[Kind[Any]]]] = {
    "score": ("pointwise", Pointwise),
    "compare": ("pairwise", Pairwise),
    "compare_pairs": ("pairs", Pairs),
}
"""By the method that a scorer has: the kind's name, and how it is asked."""

JUDGES = frozenset(kind for kind, how in KINDS.values() if how is not Pointwise)
"""Kinds that compare images and give them no level."""


def methods_of(scorer: object) -> list[str]:
    """Which of the three methods a scorer, or a class of scorers, has."""
    return [method for method in KINDS if callable(getattr(scorer, method, None))]


class Reward:
    """A scorer of any kind under a name. kind: "pointwise", "pairwise" or "pairs". stamp: on every score."""

    def __init__(self, stamp: ScorerStamp, kind: str, scorer: AnyScorer, how: Kind[Any]) -> None:
        self.stamp = stamp
        self.kind = kind
        self._scorer = scorer
        self._how = how

    @staticmethod
    def of(stamp: ScorerStamp, scorer: AnyScorer, pairs: int = 0) -> Reward:
        """pairs: see Kind. Raises RewardError where the scorer is of no kind, or of several."""
        kind, how = KINDS[_one_method(stamp.name, scorer)]
        return Reward(stamp, kind, scorer, how(stamp.name, scorer, pairs))

    def score(self, groups: Sequence[PromptImages]) -> list[RewardScores]:
        """Score groups together. Raises RewardError naming the scorer and what it did."""
        try:
            return [
                RewardScores(measured.rewards, measured.differences, measured.residual, self.stamp)
                for measured in self._how.measure(groups)
            ]
        except MemoryError as error:
            raise RewardError(f"Scorer {self.stamp.name!r}: memory is short. {error}") from error

    @property
    def paid(self) -> bool:
        """Whether a call of the scorer costs money: it is then never made without need."""
        return is_paid(self._scorer)

    def score_groups(self, groups: Sequence[PromptImages], span: Span = nullcontext) -> list[Outcome]:
        """Score groups, each a prompt with its images uint8 (B, height, width, 3), together.

        Where the scorer fails on them together, it is asked one by one, so only the groups that it fails on
        alone have a RewardFailure. span: opened once for all together, and once for each that is asked alone.
        """
        outcomes: dict[int, Outcome] = {
            row: failure for row, group in enumerate(groups) if (failure := bad_images(group))
        }
        good = [row for row in range(len(groups)) if row not in outcomes]
        outcomes.update(zip(good, self._isolated([groups[row] for row in good], span), strict=True))
        return [outcomes[row] for row in range(len(groups))]

    def check(self) -> None:
        """Load the scorer and check its contract (`check_scorer`) on a few made-up images.

        The prompts are the scorer's own `check_prompts`, where it has some. Raises RewardError.
        """
        known = prompts_of(self._scorer, CHECK_PROMPTS)
        prompts = [known[row % len(known)] for row in range(_CHECK_IMAGES)]
        check_scorer(self._scorer, prompts, _made_up_images(_CHECK_IMAGES), self.stamp.name)
        self.probe()

    def probe(self) -> None:
        """Score two made-up images as a group is scored. Raises RewardError."""
        prompt, *_ = prompts_of(self._scorer, CHECK_PROMPTS)
        self.score([(prompt, _made_up_images(2))])

    def _isolated(self, groups: Sequence[PromptImages], span: Span) -> list[Outcome]:
        """Score together; where that fails, one by one."""
        if not groups:
            return []
        try:
            with span():
                return list(self.score(groups))
        except RewardError as error:
            if len(groups) == 1:
                # It leaves the process that knows the options and tokens.
                return [RewardFailure(hide(str(error)))]
            return [outcome for group in groups for outcome in self._isolated([group], span)]


def check_scorer(
    scorer: AnyScorer, prompts: Sequence[str], images: NDArray[np.uint8], name: str = ""
) -> None:
    """Check that a scorer keeps its contract on M >= 2 images, uint8 (M, height, width, 3), a prompt each.

    All kinds: finite, of the right count, independent of what else is in the call. Unless the scorer declares
    `deterministic = False`: the same when asked again, alone, and with the images turned round. A judge of
    pairs is asked about all of them. name: what errors call it; its class where empty.

    Raises RewardError saying which is broken and by how much.
    """
    name = name or type(scorer).__name__
    how = KINDS[_one_method(name, scorer)][1](name, scorer, 0)
    # Groups of 1, 2 .. M images: one alone, and others in several company.
    groups = [(prompt, images[: row + 1]) for row, prompt in enumerate(prompts)]
    first = how.measure(_copied(groups))
    if not is_deterministic(scorer):
        return
    again = how.measure(_copied(groups))
    alone = [measured for group in groups for measured in how.measure(_copied([group]))]
    for here, there, lonely in zip(first, again, alone, strict=True):
        disagreement(name, here, there, "gives other scores for the same images when asked again")
        disagreement(name, here, lonely, "scores an image otherwise when it is alone")
    turned = how.turned(*_copied(groups[-1:])[0])
    disagreement(name, first[-1], turned, "gives differences that depend on the images' order")


def _one_method(name: str, scorer: AnyScorer) -> str:
    methods = methods_of(scorer)
    if len(methods) != 1:
        raise RewardError(f"Scorer {name!r} must have {NEEDED}; it has {' and '.join(methods) or 'none'}.")
    return methods[0]


def _copied(groups: Sequence[PromptImages]) -> list[PromptImages]:
    return [(prompt, images.copy()) for prompt, images in groups]


def disagreement(name: str, first: Measured, second: Measured, complaint: str) -> float:
    """By how much two answers about the same images differ, at most.

    Raises RewardError with the complaint where that is more than rounding: _RELATIVE of the largest number.
    """
    pairs = [(first.rewards, second.rewards), (first.differences, second.differences)]
    excess = max(float(np.abs(one - other).max()) for one, other in pairs)
    allowed = _RELATIVE * max(float(np.abs(values).max()) for pair in pairs for values in pair)
    if excess > allowed:
        raise RewardError(f"Scorer {name!r} {complaint}: they differ by {excess:g}, more than {allowed:g}.")
    return excess


def ask(name: str, call: Callable[[], object]) -> object:
    """The scorer's own answer. Raises RewardError naming it where it raises anything."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"Scorer {name!r} raised {type(error).__name__}: {error} ({_last_line(error)})"
        ) from error


def _last_line(error: BaseException) -> str:
    """Where it was raised: the last line that is no installed library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"


def numbers(name: str, answer: object, shape: tuple[int, ...], wanted: str) -> Float64:
    """The answer as finite float64 of that shape. Raises RewardError saying what it is instead.

    None may be beyond _LARGEST. What is masked counts as NaN: behind a mask stands any number.
    """
    try:
        array: NDArray[Any] = np.ma.asarray(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"Scorer {name!r} returned a {type(answer).__name__} that is no array ({error}); "
            f"wanted {wanted}, a numpy array of shape {shape}."
        ) from error
    if array.dtype.kind not in "fiu":
        raise RewardError(f"Scorer {name!r} returned type {array.dtype}; wanted {wanted}, of type float64.")
    if array.shape != shape:
        raise RewardError(f"Scorer {name!r} returned shape {array.shape}; wanted {wanted}: {shape}.")
    with np.errstate(over="ignore"):
        values: Float64 = np.ma.filled(array.astype(np.float64), np.nan)
    bad = np.argwhere(~(np.abs(values) <= _LARGEST))
    if len(bad):
        where = tuple(int(index) for index in bad[0])
        raise RewardError(
            f"Scorer {name!r} returned {len(bad)} of {array.size} numbers that are masked, not finite or "
            f"beyond {_LARGEST:g}, the first ({array[where]}) at {list(where)}."
        )
    return values


def bad_images(group: PromptImages) -> RewardFailure | None:
    """Why no scorer can be asked about these images; None where one can."""
    prompt, images = group
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3 and images.size:
        narrow = why_narrow(*images.shape[1:3])
        return RewardFailure(narrow) if narrow else None
    return RewardFailure(
        f"Images must be uint8 (B, height, width, 3), got {images.dtype} {images.shape} for {prompt!r}."
    )


def _made_up_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
