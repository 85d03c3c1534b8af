"""The queue in front of a scoring thread: bounded, in batches, with calls that run between two batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reward_service.contract.results import Reply

MOST_CALLS = 8
"""Calls that wait for the scoring thread, at most."""


@dataclass(frozen=True)
class WaitingGroup:
    """One group and where its reply goes. pixels: uint8 (B, height, width, 3). came_at: monotonic seconds."""

    prompt: str
    pixels: NDArray[np.uint8]
    reply: Future[Reply] = field(default_factory=Future)
    came_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Call:
    """Something else that the scoring thread does, and where its end is told."""

    run: Callable[[], None]
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class BatchLimits:
    """groups, wait_s: most groups of a batch, and longest wait for it to fill. queue: most groups waiting."""

    groups: int
    wait_s: float
    queue: int


@dataclass(frozen=True)
class Batch:
    """Groups to score together."""

    groups: list[WaitingGroup]


@dataclass(frozen=True)
class Closed:
    """No more work comes."""


class GroupQueue:
    """Groups in, batches out. Any thread may put; one thread takes."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._groups: deque[WaitingGroup] = deque()
        self._calls: deque[Call] = deque()
        self._called = False
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._groups)

    def limit(self, limits: BatchLimits) -> None:
        """Change the limits; groups that wait already keep their places."""
        with self._changed:
            self._limits = limits
            self._changed.notify()

    def put(self, group: WaitingGroup) -> bool:
        """Queue a group. False where the queue is full or closed."""
        with self._changed:
            if self._closed or len(self._groups) >= self._limits.queue:
                return False
            self._groups.append(group)
            self._changed.notify()
            return True

    def call(self, call: Call) -> bool:
        """Let the taker run something before the next batch. False where too many wait, or it is closed."""
        with self._changed:
            self._calls = deque(waiting for waiting in self._calls if not waiting.done.cancelled())
            if self._closed or len(self._calls) >= MOST_CALLS:
                return False
            self._calls.append(call)
            self._changed.notify()
            return True

    def take(self) -> Batch | Call | Closed:
        """The next thing to do. Waits for it; then at most wait_s for a batch to fill.

        A call goes before groups, but not twice in a row.
        """
        with self._changed:
            while not (self._groups or self._calls or self._closed):
                self._changed.wait()
            end_at = time.monotonic() + self._limits.wait_s
            while not (self._calls or self._closed or len(self._groups) >= self._limits.groups):
                if not self._changed.wait(end_at - time.monotonic()):
                    break
            if self._closed:
                return Closed()
            self._called = bool(self._calls) and not (self._called and self._groups)
            if self._called:
                return self._calls.popleft()
            count = min(len(self._groups), self._limits.groups)
            return Batch([self._groups.popleft() for _ in range(count)])

    def close(self) -> None:
        """Take no more, and cancel what waits."""
        with self._changed:
            self._closed = True
            for group in self._groups:
                group.reply.cancel()
            for call in self._calls:
                call.done.cancel()
            self._groups.clear()
            self._calls.clear()
            self._changed.notify()
