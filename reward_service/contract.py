"""What a scorer must keep, and the check that it does. Pointwise and pairwise become one kind here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from common.interfaces import Scorer
from common.trajectory import Float64, ScorerStamp

PromptImages = tuple[str, NDArray[np.uint8]]
"""A prompt and its pictures, uint8 (B, height, width, 3) RGB."""

_RELATIVE = 1e-3
_ANTISYMMETRY = 1e-6


class PairwiseScorer(Protocol):
    """A judge that compares pictures of one prompt. Runs without Ray; a user writes one class like this.

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


AnyScorer = Scorer | PairwiseScorer


@runtime_checkable
class _Compares(Protocol):
    """Tells the two kinds apart without reading `digest`, which may be slow to compute."""

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Part:
    """One reward's unweighted say about one group: rewards float64 (B,), differences float64 (B, B)."""

    rewards: Float64
    differences: Float64


class Reward(ABC):
    """A scorer under its name in the configuration."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def stamp(self) -> ScorerStamp:
        """Which version and weights."""

    @abstractmethod
    def parts(self, groups: Sequence[PromptImages]) -> list[Part]:
        """Score groups together, one Part a group. Raises RewardError naming the scorer and what it did."""

    @abstractmethod
    def check(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> None:
        """Raises RewardError where the scorer breaks its contract on these M pictures."""


class PointwiseReward(Reward):
    """A scorer that gives each picture a number."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        super().__init__(name)
        self._scorer = scorer

    @property
    def stamp(self) -> ScorerStamp:
        """Which version and weights."""
        return ScorerStamp(self.name, self._scorer.version, self._scorer.digest)

    def parts(self, groups: Sequence[PromptImages]) -> list[Part]:
        """Score groups in one call of the scorer for each picture size among them."""
        rewards: dict[int, Float64] = {}
        for shape in dict.fromkeys(images.shape[1:] for _, images in groups):
            rows = [row for row, (_, images) in enumerate(groups) if images.shape[1:] == shape]
            prompts = [groups[row][0] for row in rows for _ in groups[row][1]]
            scores = self._score(prompts, np.concatenate([groups[row][1] for row in rows]))
            ends = np.cumsum([len(groups[row][1]) for row in rows])
            rewards.update(zip(rows, np.split(scores, ends[:-1]), strict=True))
        return [
            Part(rewards[row], rewards[row][:, None] - rewards[row][None, :]) for row in range(len(groups))
        ]

    def check(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> None:
        """Finite, one a picture, the same again, and the same for a picture alone as among others."""
        together = self._score(list(prompts), images.copy())
        again = self._score(list(prompts), images.copy())
        _same(self.name, together, again, "gives other scores for the same pictures when asked again")
        alone = [
            self._score([prompt], image[None].copy()) for prompt, image in zip(prompts, images, strict=True)
        ]
        _same(self.name, together, np.concatenate(alone), "scores a picture otherwise when it is alone")

    def _score(self, prompts: list[str], images: NDArray[np.uint8]) -> Float64:
        answer = _ask(self.name, lambda: self._scorer.score(prompts, images))
        return _numbers(self.name, answer, (len(prompts),), "one finite number a picture")


class PairwiseReward(Reward):
    """A judge that compares the pictures of one prompt. Its rewards are least squares: the row means."""

    def __init__(self, name: str, scorer: PairwiseScorer) -> None:
        super().__init__(name)
        self._scorer = scorer

    @property
    def stamp(self) -> ScorerStamp:
        """Which version and weights."""
        return ScorerStamp(self.name, self._scorer.version, self._scorer.digest)

    def parts(self, groups: Sequence[PromptImages]) -> list[Part]:
        """Compare the pictures of each group, a call a group."""
        matrices = [self._compare(prompt, images.copy()) for prompt, images in groups]
        return [Part(matrix.mean(axis=1), matrix) for matrix in matrices]

    def check(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> None:
        """Finite, antisymmetric, the same again, and the same whatever the order of the pictures."""
        matrix = self._compare(prompts[0], images.copy())
        again = self._compare(prompts[0], images.copy())
        _same(self.name, matrix, again, "gives other differences for the same pictures when asked again")
        turned = self._compare(prompts[0], images[::-1].copy())
        _same(self.name, matrix, turned[::-1, ::-1], "gives differences that depend on the pictures' order")

    def _compare(self, prompt: str, images: NDArray[np.uint8]) -> Float64:
        count = len(images)
        answer = _ask(self.name, lambda: self._scorer.compare(prompt, images))
        matrix = _numbers(self.name, answer, (count, count), "a finite matrix of differences")
        excess = float(np.abs(matrix + matrix.T).max())
        if excess > _ANTISYMMETRY * max(1.0, float(np.abs(matrix).max())):
            raise RewardError(
                f"Scorer {self.name!r} returned differences that are not antisymmetric: "
                f"d[i, j] + d[j, i] is up to {excess:g} and must be 0."
            )
        return (matrix - matrix.T) / 2.0


def as_reward(name: str, scorer: AnyScorer) -> Reward:
    """A scorer of either kind under a name: with `compare` it is pairwise, otherwise pointwise."""
    if isinstance(scorer, _Compares):
        return PairwiseReward(name, cast(PairwiseScorer, scorer))
    return PointwiseReward(name, scorer)


def check_scorer(scorer: AnyScorer, prompts: Sequence[str], images: NDArray[np.uint8]) -> None:
    """Check that a scorer keeps its contract on M >= 2 pictures, uint8 (M, height, width, 3), a prompt each.

    Pointwise: finite, one number a picture, deterministic, independent of the other pictures of the call.
    Pairwise: finite (M, M), antisymmetric, deterministic, independent of the order of the pictures.
    Raises RewardError saying which is broken and by how much.
    """
    as_reward(type(scorer).__name__, scorer).check(prompts, images)


def _ask(name: str, call: Callable[[], object]) -> object:
    try:
        return call()
    except Exception as error:  # a user's scorer may raise anything
        raise RewardError(f"Scorer {name!r} raised {type(error).__name__}: {error}") from error


def _numbers(name: str, answer: object, shape: tuple[int, ...], wanted: str) -> Float64:
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


def _same(name: str, first: Float64, second: Float64, complaint: str) -> None:
    excess = float(np.abs(first - second).max())
    allowed = _RELATIVE * max(float(np.abs(first).max()), float(np.abs(second).max()))
    if excess > allowed:
        raise RewardError(f"Scorer {name!r} {complaint}: they differ by {excess:g}, more than {allowed:g}.")
