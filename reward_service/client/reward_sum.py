"""The rewards of a run as its driver sees them: groups in, weighted scores out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from common.trajectory import GroupScore, RewardScores
from reward_service.client.report import RewardReport
from reward_service.client.reward_client import Ask, RewardClient
from reward_service.client.transport import ImagesRef
from reward_service.contract.results import Outcome, RewardFailure

SHOWN_GROUPS = 3


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
        self._outstanding = 0

    @property
    def outstanding(self) -> int:
        """Groups that were asked about and have no score yet."""
        return self._outstanding

    @property
    def retries(self) -> int:
        """Groups sent again to a reward after a failure, since the start."""
        return sum(client.retries for client in self._clients.values())

    async def score(
        self, prompt: str, images: ImagesRef, count: int, with_gold: bool = False
    ) -> GroupScore | RewardFailure:
        """The score of one group, or why it has none: every reward is asked about it at the same time.

        images: reference of uint8 (count, height, width, 3) of that prompt. with_gold: ask the rewards that
        only evaluate, too. Cancelled, it withdraws what was asked.
        """
        asked = tuple(self._clients) if with_gold else tuple(self._weights)
        self._outstanding += 1
        try:
            outcomes = await asyncio.gather(
                *(self._clients[name].score(prompt, images, count) for name in asked)
            )
        finally:
            self._outstanding -= 1
        return weighted_sum(self._weights, dict(zip(asked, outcomes, strict=True)))

    def asked(self) -> dict[str, int]:
        """Groups that each reward was asked about and has not answered."""
        return {name: len(client.in_work()) for name, client in self._clients.items()}

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
