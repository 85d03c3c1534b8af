"""What an evaluation measures: the same prompts with the same noise, before, during and after training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.trajectory import Float64, GroupScore, PolicyStamp

_ROUNDING = 1e-9
TOTAL = "reward"
"""Name of the trained sum among the scores."""


@dataclass(frozen=True)
class PromptSetEvaluation:
    """One prompt set, P prompts with I images each.

    name: "seen" (training prompts) or "unseen".
    scores: float64 (P, I) by score name. TOTAL is the weighted sum trained on; the others are raw rewards and
    golds.
    pixels: uint8 (G, height, width, 3), the first image of each of the first G prompts, for the image grid.
    versions: which versions of the rewards gave a score, in words, by score name; more than one where a
    reward was swapped meanwhile.
    preferences: float64 (P, I) by judge, where one was asked: by how much it finds an image better than the
    image of the same prompt and noise in the evaluation that this one is compared with.
    """

    name: str
    prompts: tuple[str, ...]
    scores: dict[str, Float64]
    pixels: NDArray[np.uint8]
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    preferences: Mapping[str, Float64] = field(default_factory=dict)

    @staticmethod
    def of(
        name: str,
        prompts: Sequence[str],
        scores: Sequence[GroupScore],
        pixels: Sequence[NDArray[np.uint8]],
        weights: Mapping[str, float],
    ) -> PromptSetEvaluation:
        """From the score of each prompt's images. pixels: an image of each of the first prompts; weights: of
        the rewards trained on, by name."""
        parts = {part: np.stack([score.parts[part] for score in scores]) for part in scores[0].parts}
        return PromptSetEvaluation(
            name=name,
            prompts=tuple(prompts),
            scores={TOTAL: np.stack([score.rewards for score in scores]), **parts},
            pixels=np.stack(pixels),
            versions=score_versions(scores, weights),
        )

    def same_prompts(self, other: PromptSetEvaluation) -> list[tuple[int, int]]:
        """Rows here and there of the prompts that both evaluated: a reward may have failed on some."""
        rows = {key: row for row, key in enumerate(_counted(other.prompts))}
        return [(row, rows[key]) for row, key in enumerate(_counted(self.prompts)) if key in rows]

    def has_level(self, score: str) -> bool:
        """Whether a prompt's mean says anything: not of a judge that compares the prompt's images, whose
        scores add up to 0; of one image there is nothing to compare."""
        values = self.scores[score]
        return bool(np.abs(values.mean(axis=1)).max() > _ROUNDING * np.abs(values).max())

    def why_not_like(self, other: PromptSetEvaluation, score: str) -> str:
        """Why a score of this one cannot be compared with another evaluation's; empty where it can."""
        if not self.same_prompts(other):
            return "other prompts were evaluated"
        if score not in other.scores or score not in self.scores:
            return f"{score} was not measured"
        ours, theirs = self.versions.get(score, ()), other.versions.get(score, ())
        if ours == theirs and len(ours) < 2:
            return ""
        return f"measured by {_in_words(theirs)} there, by {_in_words(ours)} here"


@dataclass(frozen=True)
class Evaluation:
    """All prompt sets, with the policy that was evaluated and the number of finished epochs."""

    epoch: int
    stamp: PolicyStamp
    sets: tuple[PromptSetEvaluation, ...]

    @property
    def unseen(self) -> PromptSetEvaluation:
        """The prompts never trained on, which every evaluation of a run has."""
        return next(evaluated for evaluated in self.sets if evaluated.name == "unseen")

    def of(self, name: str) -> PromptSetEvaluation | None:
        """The prompt set of that name; None where it was not evaluated."""
        return next((evaluated for evaluated in self.sets if evaluated.name == name), None)


def score_versions(scores: Sequence[GroupScore], weights: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Which versions gave each score, in words: the versions field of PromptSetEvaluation."""
    found: dict[str, dict[str, None]] = {}
    for score in scores:
        stamps = {stamp.name: str(stamp) for stamp in score.scorers}
        total = " + ".join(f"{weight:g} x {name} {stamps.get(name, '')}" for name, weight in weights.items())
        for name, words in {TOTAL: total, **stamps}.items():
            found.setdefault(name, {})[words] = None
    return {name: tuple(words) for name, words in found.items()}


def _counted(prompts: Sequence[str]) -> list[tuple[str, int]]:
    """Each prompt, and how often it stands before that place: a set may hold one twice."""
    seen: Counter[str] = Counter()
    counted = []
    for prompt in prompts:
        counted.append((prompt, seen[prompt]))
        seen[prompt] += 1
    return counted


def _in_words(versions: tuple[str, ...]) -> str:
    return " and ".join(versions) or "a version that was not recorded"
