"""The rewards' event loop in a thread, for a driver that waits by itself."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import ray

from common.trajectory import GroupScore
from reward_service.client.reward_sum import RewardSum
from reward_service.contract.results import RewardFailure

POLL_S = 0.02
IDLE_S = 60.0

Answer = tuple[ray.ObjectRef, GroupScore | RewardFailure]


class RewardThread:
    """Groups in, scores out: `collect` gives those that are there. images: reference of a group's images."""

    def __init__(self, rewards: RewardSum) -> None:
        self._rewards = rewards
        self._loop = asyncio.new_event_loop()
        self._asked: dict[ray.ObjectRef, Future[GroupScore | RewardFailure]] = {}
        threading.Thread(target=self._loop.run_forever, name="asks rewards", daemon=True).start()

    @property
    def poll_s(self) -> float:
        """Seconds after which `collect` should be called."""
        return POLL_S if self._asked else IDLE_S

    def submit(self, prompt: str, images: ray.ObjectRef, count: int, with_gold: bool) -> None:
        """Ask for the score of one group."""
        score = self._rewards.score(prompt, images, count, with_gold)
        self._asked[images] = asyncio.run_coroutine_threadsafe(score, self._loop)

    def collect(self) -> list[Answer]:
        """Groups that have an answer now."""
        ready = [images for images, asked in self._asked.items() if asked.done()]
        return [(images, self._asked.pop(images).result()) for images in ready]
