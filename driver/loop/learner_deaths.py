"""How often the learner has died, and when that is too often."""

from __future__ import annotations

import time

from common.cluster.process_failures import (
    Death,
    counted,
    is_certain,
    living_nodes,
    of_last_hour,
    was_preempted,
)
from common.errors import StuckError


class LearnerDeaths:
    """limit: learner.restarts."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._deaths: list[Death] = []
        self._total = 0

    @property
    def total(self) -> int:
        """All so far."""
        return self._total

    def add(self, error: BaseException, nodes: frozenset[str]) -> None:
        """Ranks that ran on these nodes have died; error: what told of it.

        Raises StuckError where they have died more often within an hour than allowed. A death together with
        its node is held against nobody.
        """
        self._total += 1
        now = time.monotonic()
        deaths = [] if was_preempted(error) else [Death(now, nodes, is_certain(error))]
        self._deaths = of_last_hour([*self._deaths, *deaths], now, living_nodes())
        own = counted(self._deaths, now)
        if own > self._limit:
            raise StuckError(
                f"The learner died {own} times within an hour, more than learner.restarts = {self._limit} "
                f"allows. Look at its logs: out of memory is the usual reason. The last: {error}"
            ) from error
