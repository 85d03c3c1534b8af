"""Adding up what several rewards say about one group. Pure: the same for rewards near and far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common.errors import RewardError
from common.trajectory import GroupScore
from reward_service.contract.results import Outcome, RewardFailure, RewardScores, check_scores


def usable_scores(outcome: Outcome, images: int, answers_as: str, name: str) -> Outcome:
    """Scores as they may be used: finite, of `images` images, by the reward that was asked.

    answers_as: the name that the reward gave of itself at the start. name: its key in the configuration,
    which the stamp carries from here on. Scores that are not usable become a RewardFailure.
    """
    if isinstance(outcome, RewardFailure):
        return outcome
    if outcome.stamp.name != answers_as:
        return RewardFailure(f"Answered by the reward {outcome.stamp.name!r}, not by {answers_as!r}.")
    try:
        scores = check_scores(outcome, images)
    except RewardError as error:
        return RewardFailure(f"Its answer is not sound. {error}")
    return replace(scores, stamp=replace(scores.stamp, name=name))


def weighted_sum(weights: Mapping[str, float], outcomes: Mapping[str, Outcome]) -> GroupScore | RewardFailure:
    """The score of one group: weighted sums of rewards (B,) and of differences (B, B).

    weights: of the rewards trained on, by name. outcomes: of every reward asked, by name, in the order of the
    configuration, all usable; those without a weight are only shown. A failure of any of them is a failure of
    the group.
    """
    failures = [
        f"{name}: {outcome.reason}"
        for name, outcome in outcomes.items()
        if isinstance(outcome, RewardFailure)
    ]
    if failures:
        return RewardFailure("; ".join(failures))
    scores = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, RewardScores)}
    if len({len(one.rewards) for one in scores.values()}) != 1:
        counts = {name: len(one.rewards) for name, one in scores.items()}
        return RewardFailure(f"The rewards count the images differently: {counts}.")
    trained = [(weight, scores[name]) for name, weight in weights.items()]
    with np.errstate(over="ignore", invalid="ignore"):
        rewards = np.sum([weight * one.rewards for weight, one in trained], axis=0)
        differences = np.sum([weight * one.differences for weight, one in trained], axis=0)
    if not np.isfinite(rewards).all() or not np.isfinite(differences).all():
        return RewardFailure(f"The weighted sum of {sorted(weights)} is too large for a float64.")
    return GroupScore(
        rewards=rewards,
        differences=differences,
        parts={name: one.rewards for name, one in scores.items()},
        scorers=tuple(one.stamp for one in scores.values()),
    )
