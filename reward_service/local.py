"""The rewards in this process, without Ray."""

from __future__ import annotations

import itertools

from common.trajectory import ImageGroup, ScorerStamp
from reward_service.ledger import PendingScore
from reward_service.rewards import Answer
from reward_service.service import RewardService


class LocalRewards:
    """The same interface in this process, without Ray: a group is scored when it is submitted."""

    def __init__(self, service: RewardService) -> None:
        self._service = service
        self._numbers = itertools.count()
        self._answers: list[Answer] = []

    @property
    def room(self) -> int:
        """Groups that can be submitted: always one more."""
        return 1

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        return len(self._answers)

    def submit(self, prompt: str, images: ImageGroup, with_gold: bool = False) -> PendingScore:
        """Score one group now."""
        pending = PendingScore(next(self._numbers), prompt)
        (outcome,) = self._service.score_groups([(prompt, images.pixels)], with_gold)
        self._answers.append((pending, outcome))
        return pending

    def collect(self) -> list[Answer]:
        """Scores and RewardFailures since the last call."""
        answers, self._answers = self._answers, []
        return answers

    def wait(self, timeout_s: float) -> list[Answer]:
        """The same as collect: there is nothing to wait for."""
        return self.collect()

    def stamps(self, with_gold: bool = False) -> tuple[ScorerStamp, ...]:
        """Which scorers answer."""
        return self._service.stamps(with_gold)

    def shutdown(self) -> None:
        """Nothing to end."""
