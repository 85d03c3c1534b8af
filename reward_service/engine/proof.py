"""When a scorer was last seen to work, and the forward pass that shows it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from common.errors import RewardError
from reward_service.engine.group_queue import Call, GroupQueue


class Proof:
    """That a scorer works: a score that it gave, or a forward pass in its thread for those who ask.

    At most one pass is wanted at a time, and all who ask share it. Where a group was scored after the pass
    was asked for, that is proof enough and the pass is not made. So no number of askers keeps groups waiting.
    """

    def __init__(self, queue: GroupQueue) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self._wanted: list[Future[None]] = []
        self._worked_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the scorer was last seen to work."""
        return time.monotonic() - self._worked_at

    def works(self) -> None:
        """The scorer has just given a score."""
        self._worked_at = time.monotonic()

    def ask(self, forward: Callable[[], None]) -> Future[None]:
        """The end of the forward pass that is wanted. Not to be cancelled: others may wait for it.

        Raises RewardError where the scoring thread takes no calls.
        """
        with self._lock:
            self._wanted = [done for done in self._wanted if not done.done()]
            if not self._wanted:
                asked_at = time.monotonic()
                call = Call(lambda: self._make(forward, asked_at))
                if not self._queue.call(call):
                    raise RewardError("The scoring thread takes no calls: it ends, or too many wait already.")
                self._wanted.append(call.done)
            return self._wanted[0]

    def _make(self, forward: Callable[[], None], asked_at: float) -> None:
        if self._worked_at < asked_at:
            forward()
            self.works()
