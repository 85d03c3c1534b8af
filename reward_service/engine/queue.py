"""The queue in front of a scoring thread: bounded, in batches, with checks of the scorer between them."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.results import Reply
from reward_service.contract.settings import ServedReward


@dataclass(frozen=True)
class WaitingGroup:
    """One group and where its reply goes. images: uint8 (B, height, width, 3). came_at: monotonic seconds."""

    prompt: str
    images: NDArray[np.uint8]
    reply: Future[Reply] = field(default_factory=Future)
    came_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Check:
    """The scorer is to show that it works. done: how that ended. asked_at: monotonic seconds."""

    done: Future[None] = field(default_factory=Future)
    asked_at: float = field(default_factory=time.monotonic)


class GroupQueue:
    """Groups in, batches out. Any thread may put; one thread takes.

    settings: max_batch_groups and batch_wait_s shape the batches, queue_groups bounds what waits.
    """

    def __init__(self, settings: ServedReward) -> None:
        self._settings = settings
        self._groups: deque[WaitingGroup] = deque()
        self._check: Check | None = None
        self._waiting_check: Check | None = None
        self._checked = False
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._groups)

    def change(self, settings: ServedReward) -> None:
        """Other settings from now on; groups that wait already keep their places."""
        with self._changed:
            self._settings = settings
            self._changed.notify()

    def put(self, group: WaitingGroup) -> bool:
        """Queue a group. False where the queue is full or closed."""
        with self._changed:
            if self._closed or len(self._groups) >= self._settings.queue_groups:
                return False
            self._groups.append(group)
            self._changed.notify()
            return True

    def check(self) -> Future[None]:
        """The end of the check that is wanted; all who ask share it, so it is not to be cancelled.

        Raises RewardError where the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise RewardError("The reward ends.")
            if self._check is None or self._check.done.done():
                self._check = self._waiting_check = Check()
                self._changed.notify()
            return self._check.done

    def take(self) -> list[WaitingGroup] | Check | None:
        """The next thing to do: a batch, or a check; None once the queue is closed.

        Waits for it; then at most batch_wait_s for a batch to fill. A check goes before groups, but not twice
        in a row.
        """
        with self._changed:
            while not (self._groups or self._waiting_check or self._closed):
                self._changed.wait()
            end_at = time.monotonic() + self._settings.batch_wait_s
            while not (
                self._waiting_check or self._closed or len(self._groups) >= self._settings.max_batch_groups
            ):
                if not self._changed.wait(end_at - time.monotonic()):
                    break
            if self._closed:
                return None
            if self._waiting_check and not (self._checked and self._groups):
                check, self._waiting_check, self._checked = self._waiting_check, None, True
                return check
            self._checked = False
            count = min(len(self._groups), self._settings.max_batch_groups)
            return [self._groups.popleft() for _ in range(count)]

    def close(self) -> None:
        """Take no more, and cancel what waits."""
        with self._changed:
            self._closed = True
            for group in self._groups:
                group.reply.cancel()
            if self._waiting_check:
                self._waiting_check.done.cancel()
            self._groups.clear()
            self._changed.notify()
