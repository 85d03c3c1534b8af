"""The rewards of a configuration in this process, without Ray: for evaluation and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.config.services import AppReward, RewardEntry, RewardServiceSection, RewardSpec, UrlReward
from common.errors import RewardError
from common.trajectory import GroupScore
from reward_service.client.combine import usable_scores, weighted_sum
from reward_service.client.entries import ask_address, http_reward, token_of, until
from reward_service.contract.results import Outcome, RewardFailure
from reward_service.contract.settings import served_settings
from reward_service.engine.service import RewardService, build_service
from reward_service.http.client import HttpReward, LostGroupError


class LocalReward(Protocol):
    """One reward that is asked and waited for."""

    @property
    def answers_as(self) -> str:
        """The name in its stamps."""
        ...

    def score(self, prompt: str, images: NDArray[np.uint8]) -> Outcome:
        """One group, uint8 (B, height, width, 3). Raises RewardError where it does not answer."""
        ...


class _Here:
    """A scorer in this process."""

    def __init__(self, name: str, service: RewardService) -> None:
        self.answers_as = name
        self._service = service

    def score(self, prompt: str, images: NDArray[np.uint8]) -> Outcome:
        """See LocalReward."""
        (outcome,) = self._service.score_groups([(prompt, images)])
        return outcome


class _There:
    """A reward behind an address. retries: how often a group whose scorer died is sent again."""

    def __init__(self, answers_as: str, reward: HttpReward, retries: int) -> None:
        self.answers_as = answers_as
        self._reward = reward
        self._retries = retries

    def score(self, prompt: str, images: NDArray[np.uint8]) -> Outcome:
        """See LocalReward."""
        for _ in range(self._retries):
            try:
                return self._reward.score(prompt, images).outcome
            except LostGroupError:
                continue
        return self._reward.score(prompt, images).outcome


class LocalRewards:
    """Asks one reward after the other about a group, here and now, and adds up what they say.

    rewards: by name, trained ones first. weights: of the trained ones.
    """

    def __init__(self, rewards: Mapping[str, LocalReward], weights: Mapping[str, float]) -> None:
        self._rewards = dict(rewards)
        self._weights = dict(weights)

    def score_group(self, prompt: str, images: NDArray[np.uint8], with_gold: bool = False) -> GroupScore:
        """Score one group, uint8 (B, height, width, 3). with_gold: ask the rewards that only evaluate, too.

        Raises RewardError where any of them fails.
        """
        asked = list(self._rewards) if with_gold else list(self._weights)
        outcomes = {name: self._ask(name, prompt, images) for name in asked}
        score = weighted_sum(self._weights, outcomes)
        if isinstance(score, RewardFailure):
            raise RewardError(f"The images of {prompt!r} could not be scored: {score.reason}")
        return score

    def _ask(self, name: str, prompt: str, images: NDArray[np.uint8]) -> Outcome:
        reward = self._rewards[name]
        try:
            outcome = reward.score(prompt, images)
        except RewardError as error:
            return RewardFailure(str(error))
        return usable_scores(outcome, len(images), reward.answers_as, name)


def local_rewards(
    rewards: Mapping[str, RewardEntry], gold: Mapping[str, RewardEntry], section: RewardServiceSection
) -> LocalRewards:
    """Build or reach every reward. Embedded ones read their weights at first use.

    Raises RewardError where one cannot be built or reached, and for an application of a Ray cluster.
    """
    entries = {**rewards, **gold}
    built = {name: _FORMS[type(entry)](name, entry, section) for name, entry in entries.items()}
    return LocalRewards(built, {name: entry.weight for name, entry in rewards.items()})


def _here(name: str, entry: RewardSpec, section: RewardServiceSection) -> LocalReward:
    return _Here(name, build_service(name, served_settings(entry, section)))


def _there(name: str, entry: UrlReward, section: RewardServiceSection) -> LocalReward:
    try:
        described = ask_address(entry)
        reward = http_reward(entry, token_of(entry), section.outage_s, until(section.outage_s))
        return _There(described.stamp.name, reward, section.retries)
    except RewardError as error:
        raise RewardError(f"Reward {name!r}: {error}") from error


def _elsewhere(name: str, entry: AppReward, section: RewardServiceSection) -> LocalReward:
    raise RewardError(
        f"Reward {name!r} is the application {entry.app!r} of a Ray cluster, which this program does not "
        "join. Give its address (url) or a scorer (scorer) in its place."
    )


_FORMS: dict[type, Callable[..., LocalReward]] = {
    RewardSpec: _here,
    UrlReward: _there,
    AppReward: _elsewhere,
}
