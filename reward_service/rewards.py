"""Scoring as the driver sees it, whether by Ray Serve or in its own process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from common.trajectory import GroupScore, ScorerStamp
from reward_service.ledger import PendingScore
from reward_service.service import RewardFailure

Answer = tuple[PendingScore, GroupScore | RewardFailure]
"""A group's receipt with its score, or with the reason why it was dropped."""

Images = TypeVar("Images", contravariant=True)


@dataclass(frozen=True)
class RewardCounters:
    """What has happened since the start.

    scored, dropped: groups. retries: groups sent again after a failure. busy_s: seconds that scorers worked.
    """

    scored: int = 0
    dropped: int = 0
    retries: int = 0
    busy_s: float = 0.0


class Rewards(Protocol[Images]):
    """Scoring as the driver sees it: RewardClient on Ray Serve, LocalRewards in this process."""

    @property
    def room(self) -> int:
        """Groups that can be submitted before scores are collected."""
        ...

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        ...

    def counters(self) -> RewardCounters:
        """What has happened since the start."""
        ...

    def submit(self, prompt: str, images: Images, with_gold: bool = False) -> PendingScore:
        """Ask for the score of one group. Does not wait."""
        ...

    def collect(self) -> list[Answer]:
        """Answers that are there now. Does not wait."""
        ...

    def wait(self, timeout_s: float) -> list[Answer]:
        """Answers, as soon as there is one; empty after timeout_s or where nothing is outstanding."""
        ...

    def stamps(self, with_gold: bool = False) -> tuple[ScorerStamp, ...]:
        """Which scorers answer."""
        ...

    def shutdown(self) -> None:
        """End what was started."""
        ...
