"""What went wrong and was mended since the last epoch, and how many actors there were."""

from __future__ import annotations

import time

from actors.pool import ActorPool
from common.cluster.process_failures import DeathCounter
from driver.loop.rollouts import Rollouts
from reward_service.client.reward_sum import RewardSum


class FaultCounter:
    """Differences of the services' running counts, so that each fault is reported in one epoch."""

    def __init__(self, pool: ActorPool, rewards: RewardSum, rollouts: Rollouts, deaths: DeathCounter) -> None:
        self._pool = pool
        self._rewards = rewards
        self._rollouts = rollouts
        self._deaths = deaths
        self._reported: dict[str, int] = {}
        self._ready_s = pool.ready_s
        self._at = time.monotonic()

    def since_last(self) -> dict[str, float]:
        """Counts since the last call, by metric; and the mean over that time of actors that were ready."""
        totals = {
            "faults/actor_restarts": self._pool.restarts,
            "faults/learner_restarts": self._deaths.total,
            "faults/redone_tasks": self._pool.redone,
            "faults/retried_groups": self._rewards.retries,
            "faults/dropped_groups": self._rollouts.dropped,
        }
        grown = {name: float(total - self._reported.get(name, 0)) for name, total in totals.items()}
        self._reported = totals
        now, ready_s = time.monotonic(), self._pool.ready_s
        ready = (ready_s - self._ready_s) / max(now - self._at, 1e-9)
        self._ready_s, self._at = ready_s, now
        return {**grown, "throughput/actors_ready": ready}
