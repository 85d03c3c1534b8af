"""A reward whose answers the test writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.trajectory import RewardScores, ScorerStamp
from reward_service.client.transport import RequestError
from reward_service.contract.results import Outcome, Reply

BUSY_S = 0.25


@dataclass(frozen=True)
class Images:
    """A reference that nobody looks behind."""

    name: str = "images"

    def hex(self) -> str:
        return self.name


def scores(rewards: Sequence[float] = (0.0, 1.0), version: str = "1", name: str = "size") -> RewardScores:
    """Scores of one number an image."""
    values = np.array(rewards)
    return RewardScores(values, values[:, None] - values[None, :], 0.0, ScorerStamp(name, version, ""))


class Hang:
    """Stands in a script for a request that is taken and never answered."""


Say = Outcome | RequestError | Hang


@dataclass
class ScriptedTransport:
    """Answers each prompt with what its script says, one say a request, the last one again and again.

    second: how long each request takes. away: what absence() says. refused: what replies say of settings.
    """

    script: dict[str, list[Say]] = field(default_factory=dict)
    window: int = 4
    limit_s: float = 1000.0
    away: str | None = "It is away."
    second: float = 1.0
    refused: str = ""
    stamp: ScorerStamp = field(default_factory=lambda: ScorerStamp("size", "1", ""))
    asked: list[str] = field(default_factory=list)
    out: list[str] = field(default_factory=list)
    beside: list[tuple[str, ...]] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)

    async def score(self, prompt: str, images: object) -> Reply:
        """See RewardTransport. asked: prompts in order; beside: what was out with each, itself included."""
        says = self.script.get(prompt, [scores()])
        say = says[min(self.asked.count(prompt), len(says) - 1)]
        self.asked.append(prompt)
        self.out.append(prompt)
        self.beside.append(tuple(self.out))
        try:
            await asyncio.sleep(1e9 if isinstance(say, Hang) else self.second)
        except asyncio.CancelledError:
            self.withdrawn.append(prompt)
            raise
        finally:
            self.out.remove(prompt)
        if isinstance(say, RequestError):
            raise say
        assert not isinstance(say, Hang)
        return Reply(say, BUSY_S, refused=self.refused)

    async def absence(self) -> str | None:
        return self.away
