"""The rewards in this process, without Ray."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

from common.trajectory import ImageGroup, ScorerStamp
from reward_service.ledger import PendingScore
from reward_service.rewards import Answer, RewardCounters
from reward_service.service import RewardFailure, RewardService


class LocalRewards:
    """The same interface in this process, without Ray: a group is scored when it is submitted."""

    def __init__(self, service: RewardService) -> None:
        self._service = service
        self._numbers = itertools.count()
        self._answers: list[Answer] = []
        self._counters = RewardCounters()

    @property
    def room(self) -> int:
        """Groups that can be submitted: always one more."""
        return 1

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        return len(self._answers)

    def counters(self) -> RewardCounters:
        """What has happened since the start."""
        return self._counters

    def submit(self, prompt: str, images: ImageGroup, with_gold: bool = False) -> PendingScore:
        """Score one group now."""
        started = time.monotonic()
        pending = PendingScore(next(self._numbers), prompt)
        (outcome,) = self._service.score_groups([(prompt, images.pixels)], with_gold)
        failed = isinstance(outcome, RewardFailure)
        self._counters = replace(
            self._counters,
            scored=self._counters.scored + (not failed),
            dropped=self._counters.dropped + failed,
            busy_s=self._counters.busy_s + time.monotonic() - started,
        )
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
