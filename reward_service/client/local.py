"""The rewards of a configuration asked without Ray: for evaluation and benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config.services import RewardEntry, RewardServiceSection, RewardSpec, UrlReward
from common.errors import RewardError
from common.trajectory import GroupScore
from reward_service.client.entries import PATIENT, ask_address, ask_once, http_reward, token_of
from reward_service.client.reward_client import RewardClient
from reward_service.client.reward_sum import RewardSum
from reward_service.contract.registry import naming
from reward_service.contract.results import Reply, RewardFailure
from reward_service.contract.reward import JUDGES, Reward
from reward_service.contract.settings import served_settings
from reward_service.engine.build import build_reward


@dataclass(frozen=True, eq=False)
class _Images:
    """Stands where a reference would. pixels: uint8 (B, height, width, 3)."""

    pixels: NDArray[np.uint8]

    def hex(self) -> str:
        return str(id(self.pixels))


class _Here:
    """A scorer in this process; a RewardTransport. kind: see Reward."""

    window = 1
    limit_s = float("inf")

    def __init__(self, service: Reward) -> None:
        self.stamp = service.stamp
        self.kind = service.kind
        self._service = service

    async def score(self, prompt: str, images: Any) -> Reply:
        (outcome,) = self._service.score_groups([(prompt, images.pixels)])
        return Reply(outcome, 0.0)

    async def absence(self) -> str | None:
        return None


class _There:
    """A reward behind an address; a RewardTransport. kind: as it describes itself, or empty."""

    window = 1

    def __init__(self, entry: UrlReward, section: RewardServiceSection) -> None:
        described = ask_address(entry)
        self.stamp = described.stamp
        self.kind = described.kind
        self.limit_s = section.outage_s
        self._reward = http_reward(entry, token_of(entry), section.outage_s, PATIENT)

    async def score(self, prompt: str, images: Any) -> Reply:
        return await ask_once(self._reward, prompt, images.pixels)

    async def absence(self) -> str | None:
        return None


class LocalRewards:
    """Asks a RewardSum about one group after the other. judges: of its clients those that only compare."""

    def __init__(self, rewards: RewardSum, judges: Mapping[str, RewardClient]) -> None:
        self._rewards = rewards
        self._judges = judges
        self._runner = asyncio.Runner()

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of the rewards that compare images and give them no level."""
        return tuple(self._judges)

    def score_group(self, prompt: str, images: NDArray[np.uint8], with_gold: bool = False) -> GroupScore:
        """Score one group, uint8 (B, height, width, 3). with_gold: ask the rewards that only evaluate, too.

        Raises RewardError where any of them fails.
        """
        asked = self._rewards.score(prompt, _Images(images), len(images), with_gold)
        score = self._runner.run(asked)
        if isinstance(score, RewardFailure):
            raise RewardError(f"The images of {prompt!r} could not be scored: {score.reason}")
        return score

    def preference(self, judge: str, prompt: str, images: NDArray[np.uint8]) -> float:
        """By how much a judge finds the second of two images, uint8 (2, height, width, 3), better than the
        first. Raises RewardError where it fails."""
        outcome = self._runner.run(self._judges[judge].score(prompt, _Images(images), 2))
        if isinstance(outcome, RewardFailure):
            raise RewardError(f"{judge} could not compare two images of {prompt!r}: {outcome.reason}")
        return float(outcome.differences[1, 0])


def local_rewards(
    rewards: Mapping[str, RewardEntry], gold: Mapping[str, RewardEntry], section: RewardServiceSection
) -> LocalRewards:
    """Build or reach every reward. Embedded ones read their weights at first use.

    Raises RewardError where one cannot be built or reached, and for an application of a Ray cluster.
    """
    entries = {**rewards, **gold}
    transports = {name: _open(name, entry, section) for name, entry in entries.items()}
    clients = {name: RewardClient(name, transport, section) for name, transport in transports.items()}
    weights = {name: entry.weight for name, entry in rewards.items()}
    judges = {name: clients[name] for name, transport in transports.items() if transport.kind in JUDGES}
    return LocalRewards(RewardSum(clients, weights, ExitStack()), judges)


def _open(name: str, entry: RewardEntry, section: RewardServiceSection) -> _Here | _There:
    if isinstance(entry, RewardSpec):
        return _Here(build_reward(name, served_settings(entry, section)))
    with naming(name):
        if isinstance(entry, UrlReward):
            return _There(entry, section)
        raise RewardError(
            f"It is the application {entry.app!r} of a Ray cluster, which this program does not join. Give "
            "its address (url) or a scorer (scorer) in its place."
        )
