"""The reward service without Ray: groups of pictures in, weighted rewards and reward differences out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config.services import RewardSpec
from common.errors import RewardError
from common.trajectory import GroupScore, ScorerStamp
from reward_service.contract import AnyScorer, Part, PromptImages, Reward, as_reward
from reward_service.registry import build_scorer


@dataclass(frozen=True)
class RewardFailure:
    """Why a group has no score. Stands where a GroupScore would; a failure is never a number."""

    reason: str


class RewardService:
    """Scores groups by a weighted mix of rewards, and by gold rewards that only evaluate.

    trained: scorer and weight by name; gold: scorer by name. The weighted sum is over raw scores.
    """

    def __init__(self, trained: Mapping[str, tuple[AnyScorer, float]], gold: Mapping[str, AnyScorer]) -> None:
        if not trained:
            raise RewardError("A reward service needs at least one trained reward.")
        self._trained = [as_reward(name, scorer) for name, (scorer, _) in trained.items()]
        self._gold = [as_reward(name, scorer) for name, scorer in gold.items()]
        self._weights = {name: weight for name, (_, weight) in trained.items()}

    def score_groups(
        self, groups: Sequence[PromptImages], with_gold: bool = False
    ) -> list[GroupScore | RewardFailure]:
        """Score groups, each a prompt with its pictures uint8 (B, height, width, 3), together.

        Where a scorer fails on them together, it scores them one by one, so only the groups that it fails on
        alone have a RewardFailure. with_gold: `parts` and `scorers` also hold the gold rewards.
        """
        failures: dict[int, GroupScore | RewardFailure] = {
            row: failure for row, group in enumerate(groups) for failure in _bad_images(group)
        }
        parts: dict[int, dict[str, Part]] = {row: {} for row in range(len(groups)) if row not in failures}
        for reward in self._asked(with_gold):
            rows = list(parts)
            for row, outcome in zip(rows, _isolated(reward, [groups[row] for row in rows]), strict=True):
                if isinstance(outcome, RewardFailure):
                    failures[row] = outcome
                    del parts[row]
                else:
                    parts[row][reward.name] = outcome
        stamps = self.stamps(with_gold)
        outcomes = failures | {row: self._mix(part, stamps) for row, part in parts.items()}
        return [outcomes[row] for row in range(len(groups))]

    def score_group(self, prompt: str, images: NDArray[np.uint8]) -> GroupScore:
        """Score one group, uint8 (B, height, width, 3), by the trained rewards.

        Raises RewardError where any scorer fails.
        """
        (outcome,) = self.score_groups([(prompt, images)])
        if isinstance(outcome, RewardFailure):
            raise RewardError(outcome.reason)
        return outcome

    def stamps(self, with_gold: bool = False) -> tuple[ScorerStamp, ...]:
        """Which scorers answer, trained ones first."""
        return tuple(reward.stamp for reward in self._asked(with_gold))

    def check(self) -> None:
        """Load every scorer and check its contract (contract.check_scorer) on a few made-up pictures.

        Raises RewardError.
        """
        for reward in self._asked(with_gold=True):
            reward.check(["a red apple", "a blue house", "a red apple"], _made_up_pictures(3))

    def probe(self) -> None:
        """Score one made-up picture by every scorer. Raises RewardError."""
        for reward in self._asked(with_gold=True):
            reward.parts([("a red apple", _made_up_pictures(1))])

    def _asked(self, with_gold: bool) -> list[Reward]:
        return self._trained + (self._gold if with_gold else [])

    def _mix(self, parts: Mapping[str, Part], stamps: tuple[ScorerStamp, ...]) -> GroupScore | RewardFailure:
        weighted = [(weight, parts[name]) for name, weight in self._weights.items()]
        with np.errstate(over="ignore", invalid="ignore"):
            rewards = np.sum([weight * part.rewards for weight, part in weighted], axis=0)
            differences = np.sum([weight * part.differences for weight, part in weighted], axis=0)
        if not np.isfinite(differences).all() or not np.isfinite(rewards).all():
            return RewardFailure(f"The weighted sum of {sorted(self._weights)} is too large for a float64.")
        return GroupScore(rewards, differences, {name: part.rewards for name, part in parts.items()}, stamps)


def build_service(rewards: Mapping[str, RewardSpec], gold: Mapping[str, RewardSpec]) -> RewardService:
    """The service that a configuration describes. Raises RewardError naming the reward it cannot build."""
    scorers: dict[str, AnyScorer] = {}
    for name, spec in {**rewards, **gold}.items():
        try:
            scorers[name] = build_scorer(spec)
        except RewardError as error:
            raise RewardError(f"Reward {name!r}: {error}") from error
    trained = {name: (scorers[name], spec.weight) for name, spec in rewards.items()}
    return RewardService(trained, {name: scorers[name] for name in gold})


def _isolated(reward: Reward, groups: Sequence[PromptImages]) -> list[Part | RewardFailure]:
    """Score together; where that fails, one by one."""
    if not groups:
        return []
    try:
        return list(reward.parts(groups))
    except RewardError as error:
        if len(groups) == 1:
            return [RewardFailure(str(error))]
        return [outcome for group in groups for outcome in _isolated(reward, [group])]


def _bad_images(group: PromptImages) -> list[RewardFailure]:
    images = group[1]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3 and images.size:
        return []
    return [
        RewardFailure(
            f"Pictures must be uint8 (B, height, width, 3), got {images.dtype} {images.shape} for "
            f"prompt {group[0]!r}."
        )
    ]


def _made_up_pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
