"""What a scorer must keep, and the check that it does. Three kinds of scorers become one `Reward` here.

The kind is decided by which one of three methods a class has: `score` (a number an image), `compare` (a
matrix of differences) or `compare_pairs` (a judge of single pairs).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import Float64, RewardScores, ScorerStamp
from reward_service.contract.pairs import plan_pairs, solve_pairs
from reward_service.contract.results import antisymmetric

PromptImages = tuple[str, NDArray[np.uint8]]
"""A prompt and its images, uint8 (B, height, width, 3) RGB."""

MOST_RATIO = 8
"""Longest side of an image over its shortest. Models take squares, and resize the shorter side first: a line
of pixels would become an image of gigabytes."""

Settings = Mapping[str, str | int | float | bool]

_RELATIVE = 1e-3


class Scorer(Protocol):
    """A pointwise reward: one finite number an image. Runs without Ray; a user writes one class like this.

    Example::

        class Redness:
            version = "1"
            digest = ""          # no weights

            def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
                return images[..., 0].mean(axis=(1, 2)) / 255.0
    """

    @property
    def version(self) -> str:
        """Of the scorer's code or settings; part of every score's stamp."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of weights and settings; empty where there are none."""
        ...

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them, one an image -> float64 (M,),
        finite."""
        ...


class PairwiseScorer(Protocol):
    """A judge that compares all images of a prompt at once. Runs without Ray; a user writes one class.

    Example::

        class Judge:
            version = "1"
            digest = ""

            def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
                wins = ask_somebody(prompt, images)          # (B, B), wins[i, j]: share of votes for i over j
                return wins - wins.T
    """

    @property
    def version(self) -> str:
        """Names the code or settings; an attribute will do."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of weights and settings, or empty; an attribute will do."""
        ...

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB -> float64 (B, B), antisymmetric: by how much i beats j."""
        ...


class PairsScorer(Protocol):
    """A judge that looks at two images at a time. The service chooses the pairs: all, or a stated budget.

    Example::

        class Duel:
            version = "1"
            digest = ""
            deterministic = False      # it may answer otherwise when asked again

            def compare_pairs(
                self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
            ) -> NDArray[np.float64]:
                return np.array([ask_somebody(prompt, images[i], images[j]) for i, j in pairs])
    """

    @property
    def version(self) -> str:
        """Names the code or settings; an attribute will do."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of weights and settings, or empty; an attribute will do."""
        ...

    def compare_pairs(
        self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB; pairs: int (P, 2) -> float64 (P,): by how much
        images[pairs[p, 0]] beats images[pairs[p, 1]]."""
        ...


AnyScorer = Scorer | PairwiseScorer | PairsScorer
S = TypeVar("S")


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


NEEDED = (
    "exactly one of score(prompts, images), one number an image; compare(prompt, images), a matrix of "
    "differences; compare_pairs(prompt, images, pairs), one difference a pair"
)


def methods_of(scorer: object) -> list[str]:
    """Which of the three methods a scorer, or a class of scorers, has."""
    return [method for method in KINDS if callable(getattr(scorer, method, None))]


def why_narrow(height: int, width: int) -> str:
    """Why images of these sides would be too large once they are prepared for a model; empty otherwise."""
    if max(height, width) <= MOST_RATIO * min(height, width):
        return ""
    return f"Images of {height} x {width} are too narrow; allowed: one side {MOST_RATIO} times the other."


class Reward:
    """A scorer of any kind under a name. kind: "pointwise", "pairwise" or "pairs"."""

    def __init__(self, stamp: ScorerStamp, kind: str, how: Kind[Any]) -> None:
        self.stamp = stamp
        self.kind = kind
        self._how = how

    def score(self, groups: Sequence[PromptImages]) -> list[RewardScores]:
        """Score groups together. Raises RewardError naming the scorer and what it did."""
        try:
            return [
                RewardScores(measured.rewards, measured.differences, measured.residual, self.stamp)
                for measured in self._how.measure(groups)
            ]
        except MemoryError as error:
            raise RewardError(f"Scorer {self.stamp.name!r}: memory is short. {error}") from error


def as_reward(stamp: ScorerStamp, scorer: AnyScorer, pairs: int = 0) -> Reward:
    """A scorer of any kind under the stamp's name. Raises RewardError where it is of none, or of several."""
    kind, how = KINDS[_one_method(stamp.name, scorer)]
    return Reward(stamp, kind, how(stamp.name, scorer, pairs))


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
        _same(name, here, there, "gives other scores for the same images when asked again")
        _same(name, here, lonely, "scores an image otherwise when it is alone")
    turned = how.turned(*_copied(groups[-1:])[0])
    _same(name, first[-1], turned, "gives differences that depend on the images' order")


def is_deterministic(scorer: AnyScorer) -> bool:
    """Whether it answers the same when asked again: true unless it declares `deterministic = False`."""
    return bool(getattr(scorer, "deterministic", True))


def is_paid(scorer: AnyScorer) -> bool:
    """Whether somebody is paid for its answers: false unless it declares `paid = True`."""
    return bool(getattr(scorer, "paid", False))


def prompts_of(scorer: AnyScorer, otherwise: Sequence[str]) -> tuple[str, ...]:
    """What it is tested with: the prompts `otherwise`, unless it declares `check_prompts` of its own."""
    return tuple(getattr(scorer, "check_prompts", ())) or tuple(otherwise)


def _one_method(name: str, scorer: AnyScorer) -> str:
    methods = methods_of(scorer)
    if len(methods) != 1:
        raise RewardError(f"Scorer {name!r} must have {NEEDED}; it has {' and '.join(methods) or 'none'}.")
    return methods[0]


def _copied(groups: Sequence[PromptImages]) -> list[PromptImages]:
    return [(prompt, images.copy()) for prompt, images in groups]


def _same(name: str, first: Measured, second: Measured, complaint: str) -> None:
    pairs = [(first.rewards, second.rewards), (first.differences, second.differences)]
    excess = max(float(np.abs(one - other).max()) for one, other in pairs)
    allowed = _RELATIVE * max(float(np.abs(values).max()) for pair in pairs for values in pair)
    if excess > allowed:
        raise RewardError(f"Scorer {name!r} {complaint}: they differ by {excess:g}, more than {allowed:g}.")


def ask(name: str, call: Callable[[], object]) -> object:
    """The scorer's own answer. Raises RewardError naming it where it raises anything."""
    try:
        return call()
    except Exception as error:
        raise RewardError(f"Scorer {name!r} raised {type(error).__name__}: {error}") from error


def numbers(name: str, answer: object, shape: tuple[int, ...], wanted: str) -> Float64:
    """The answer as finite float64 of that shape. Raises RewardError saying what it is instead."""
    try:
        array = np.asarray(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"Scorer {name!r} returned a {type(answer).__name__} that is no array ({error}); "
            f"wanted {wanted}, a numpy array of shape {shape}."
        ) from error
    if array.dtype.kind not in "fiu":
        raise RewardError(f"Scorer {name!r} returned type {array.dtype}; wanted {wanted}, of type float64.")
    if array.shape != shape:
        raise RewardError(f"Scorer {name!r} returned shape {array.shape}; wanted {wanted}: {shape}.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(int(index) for index in bad[0])
        raise RewardError(
            f"Scorer {name!r} returned {len(bad)} of {array.size} numbers that are not finite, the first "
            f"({array[where]}) at {list(where)}."
        )
    return array.astype(np.float64)


def digest_settings(settings: Settings) -> str:
    """SHA-256 (hex) of settings, independent of their order."""
    return digest_files((), settings)


def digest_files(files: Sequence[Path], settings: Settings) -> str:
    """SHA-256 (hex) over the settings and over name and content of each file, independent of their order."""
    total = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for file in sorted(files, key=lambda file: file.name):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"|{file.name}|{content}".encode())
    return total.hexdigest()
