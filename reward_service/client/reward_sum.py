"""The rewards of a run as its driver sees them: groups in, weighted scores out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from common.trajectory import GroupScore, RewardScores, ScorerStamp
from reward_service.client.report import RewardReport
from reward_service.client.reward_client import Ask, RewardClient
from reward_service.client.transport import ImagesRef
from reward_service.client.versions import VersionHistory
from reward_service.contract.results import Outcome, RewardFailure

SHOWN_GROUPS = 3


@dataclass(frozen=True)
class RewardCounters:
    """What has happened since the start.

    scored, dropped: groups. retries: groups sent again to a reward after a failure. busy_s: seconds that
    scorers worked. swaps: changes of a reward's version.
    """

    scored: int
    dropped: int
    retries: int
    busy_s: float
    swaps: int


class RewardSum:
    """Asks every reward about each group and adds up what they say. Used from one event loop.

    clients: by name, trained ones first, then those that only evaluate. weights: of the trained ones.
    at_end: frees what was started for them.
    """

    def __init__(
        self, clients: Mapping[str, RewardClient], weights: Mapping[str, float], at_end: ExitStack
    ) -> None:
        self._clients = dict(clients)
        self._weights = dict(weights)
        self._at_end = at_end
        self._versions = {name: VersionHistory(client.stamp) for name, client in clients.items()}
        self._outstanding = 0
        self._scored = 0
        self._dropped = 0
        self._swaps = 0
        self._telling: set[asyncio.Task[None]] = set()
        self._news: list[str] = []

    @property
    def outstanding(self) -> int:
        """Groups that were asked about and have no score yet."""
        return self._outstanding

    async def score(
        self, prompt: str, images: ImagesRef, count: int, with_gold: bool = False
    ) -> GroupScore | RewardFailure:
        """The score of one group, or why it has none: every reward is asked about it at the same time.

        images: reference of uint8 (count, height, width, 3) of that prompt. with_gold: ask the rewards that
        only evaluate, too. Cancelled, it withdraws what was asked.
        """
        asked = self._names(with_gold)
        self._outstanding += 1
        try:
            outcomes = await asyncio.gather(*(self._ask(name, prompt, images, count) for name in asked))
        finally:
            self._outstanding -= 1
        score = weighted_sum(self._weights, dict(zip(asked, outcomes, strict=True)))
        if isinstance(score, RewardFailure):
            self._dropped += 1
        else:
            self._scored += 1
        return score

    def stamps(self, with_gold: bool = False) -> tuple[ScorerStamp, ...]:
        """Which versions answer now, trained rewards first."""
        return tuple(self._versions[name].current for name in self._names(with_gold))

    def counters(self) -> RewardCounters:
        """What has happened since the start."""
        clients = self._clients.values()
        return RewardCounters(
            scored=self._scored,
            dropped=self._dropped,
            retries=sum(client.retries for client in clients),
            busy_s=sum(client.busy_s for client in clients),
            swaps=self._swaps,
        )

    def asked(self) -> dict[str, int]:
        """Groups that each reward was asked about and has not answered."""
        return {name: client.outstanding for name, client in self._clients.items()}

    def in_work(self) -> list[str]:
        """Which reward has which groups, in words."""
        waiting = {name: client.in_work() for name, client in self._clients.items()}
        return [
            f"reward {name} has {', '.join(map(repr, prompts[:SHOWN_GROUPS]))}"
            + (f" and {len(prompts) - SHOWN_GROUPS} more" if len(prompts) > SHOWN_GROUPS else "")
            for name, prompts in waiting.items()
            if prompts
        ]

    def take_asks(self) -> list[Ask]:
        """When rewards were asked and answered since the last call."""
        return [ask for client in self._clients.values() for ask in client.take_asks()]

    def take_news(self) -> list[str]:
        """What swaps since the last call have changed in settings, in words."""
        news, self._news = self._news, []
        return news

    def take_reports(self) -> dict[str, RewardReport]:
        """What each reward did since the last call."""
        return {name: client.take_report() for name, client in self._clients.items()}

    def take_refusals(self) -> list[str]:
        """Changes of settings that rewards have refused since the last call, in words."""
        return [
            f"Reward {name} refused its last change of settings, and goes on with the earlier ones: {reason}"
            for name, client in self._clients.items()
            for reason in client.take_refusals()
        ]

    def shutdown(self) -> None:
        """End what was started for the run; applications that were there before are left alone."""
        self._at_end.close()

    async def _ask(self, name: str, prompt: str, images: ImagesRef, count: int) -> Outcome:
        outcome = await self._clients[name].score(prompt, images, count)
        if isinstance(outcome, RewardScores) and self._versions[name].scored_by(outcome.stamp):
            self._swaps += 1
            # Beside the group, which is scored already.
            telling = asyncio.create_task(self._tell(name, outcome.stamp))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        return outcome

    async def _tell(self, name: str, stamp: ScorerStamp) -> None:
        if changed := await self._clients[name].changed_settings():
            self._news.append(f"reward {name}, {stamp}: {'; '.join(changed)}")

    def _names(self, with_gold: bool) -> tuple[str, ...]:
        return tuple(self._clients) if with_gold else tuple(self._weights)


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
