"""Adding up what several rewards say about one group. Pure: the same for rewards near and far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common.errors import RewardError
from common.trajectory import GroupScore
from reward_service.contract.results import Outcome, RewardFailure, RewardScores, check_scores


def sound_part(outcome: Outcome, images: int, answers_as: str, name: str) -> Outcome:
    """A part as it may be used: finite, of `images` pictures, by the reward that was asked.

    answers_as: the name that the reward gave of itself at the start. name: its key in the configuration,
    which the part's stamp carries from here on. A part that is not sound becomes a RewardFailure.
    """
    if isinstance(outcome, RewardFailure):
        return outcome
    if outcome.stamp.name != answers_as:
        return RewardFailure(f"Answered by the reward {outcome.stamp.name!r}, not by {answers_as!r}.")
    try:
        part = check_scores(outcome, images)
    except RewardError as error:
        return RewardFailure(f"Its answer is not sound. {error}")
    return replace(part, stamp=replace(part.stamp, name=name))


def join_parts(weights: Mapping[str, float], outcomes: Mapping[str, Outcome]) -> GroupScore | RewardFailure:
    """The score of one group: weighted sums of rewards (B,) and of differences (B, B).

    weights: of the rewards trained on, by name. outcomes: of every reward asked, by name, in the order of the
    configuration; those without a weight are only shown. A failure of any of them is a failure of the group.
    """
    failures = [
        f"{name}: {outcome.reason}"
        for name, outcome in outcomes.items()
        if isinstance(outcome, RewardFailure)
    ]
    if failures:
        return RewardFailure("; ".join(failures))
    parts = {name: part for name, part in outcomes.items() if isinstance(part, RewardScores)}
    if len({len(part.rewards) for part in parts.values()}) != 1:
        counts = {name: len(part.rewards) for name, part in parts.items()}
        return RewardFailure(f"The rewards count the pictures differently: {counts}.")
    trained = [(weight, parts[name]) for name, weight in weights.items()]
    with np.errstate(over="ignore", invalid="ignore"):
        rewards = np.sum([weight * part.rewards for weight, part in trained], axis=0)
        differences = np.sum([weight * part.differences for weight, part in trained], axis=0)
    if not np.isfinite(rewards).all() or not np.isfinite(differences).all():
        return RewardFailure(f"The weighted sum of {sorted(weights)} is too large for a float64.")
    return GroupScore(
        rewards=rewards,
        differences=differences,
        parts={name: part.rewards for name, part in parts.items()},
        scorers=tuple(part.stamp for part in parts.values()),
    )
