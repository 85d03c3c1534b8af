"""A reward to be asked from the shell: a scorer in this process, or one behind an address."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.results import RewardFailure, RewardScores
from reward_service.contract.settings import ServedReward
from reward_service.engine.service import RewardService, build_service
from reward_service.http.address import check_address
from reward_service.http.client import HttpReward, Retrying
from reward_service.http.token import TokenSource

NAME = "reward"
SOON = Retrying(tries=3)
"""A person waits: try again twice, not for minutes."""


class Target(ABC):
    """Scores groups."""

    @abstractmethod
    def kind(self) -> str:
        """ "pointwise", "pairwise" or "pairs". Raises RewardError."""

    @abstractmethod
    def score(self, prompt: str, pixels: NDArray[np.uint8]) -> RewardScores:
        """Score one group, uint8 (B, height, width, 3) RGB. Raises RewardError where there is no score."""


class ScorerTarget(Target):
    """A scorer in this process, asked as a replica asks it."""

    def __init__(self, service: RewardService) -> None:
        self._service = service

    def kind(self) -> str:
        """How the scorer is asked."""
        return self._service.kind

    def score(self, prompt: str, pixels: NDArray[np.uint8]) -> RewardScores:
        """Score one group."""
        (outcome,) = self._service.score_groups([(prompt, pixels)])
        if isinstance(outcome, RewardFailure):
            raise RewardError(outcome.reason)
        return outcome


class AddressTarget(Target):
    """A reward behind an address."""

    def __init__(self, client: HttpReward) -> None:
        self._client = client

    def kind(self) -> str:
        """How the scorer there is asked."""
        return self._client.describe().kind

    def score(self, prompt: str, pixels: NDArray[np.uint8]) -> RewardScores:
        """Score one group."""
        outcome = self._client.score(prompt, pixels).outcome
        if isinstance(outcome, RewardFailure):
            raise RewardError(outcome.reason)
        return outcome


def scorer_target(served: ServedReward) -> Target:
    """A scorer in this process, with as many threads as its settings say. Raises RewardError."""
    torch.set_num_threads(served.threads)
    return ScorerTarget(build_service(NAME, served))


def address_target(address: str, token: TokenSource) -> Target:
    """A reward behind an address. Raises RewardError where the token must not travel there."""
    found = token.read()
    check_address(address, found, insecure=False)
    return AddressTarget(HttpReward(address, found, retrying=SOON))
