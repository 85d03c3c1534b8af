"""Work in the background, one at a time, whose failure comes back to whoever waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from common.errors import CheckpointError, StuckError

WAIT_SLICE_S = 1.0


class BackgroundWrite:
    """One piece of work in a thread of its own. what: names it in errors. limit_s: of all waits together.

    The work may raise CheckpointError. The thread ends with the process, finished or not.
    """

    def __init__(self, work: Callable[[], None], what: str, limit_s: float) -> None:
        self._work = work
        self._what = what
        self._limit_s = limit_s
        self._waited_s = 0.0
        self._failures: tuple[CheckpointError, ...] = ()
        self._through = False
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    @property
    def what(self) -> str:
        """Names it."""
        return self._what

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._thread.is_alive()

    def start(self) -> BackgroundWrite:
        """Begin."""
        self._thread.start()
        return self

    def wait(self, look: Callable[[], None]) -> None:
        """Until it is through, or has failed; `look` is called about each second. Raises StuckError."""
        while self.running and self._waited_s < self._limit_s:
            began = time.monotonic()
            self._thread.join(min(WAIT_SLICE_S, self._limit_s - self._waited_s))
            self._waited_s += time.monotonic() - began
            look()
        if self.running:
            raise StuckError(
                f"Waited {self._limit_s:.0f} s for {self._what}, in vain. Raise checkpoint.timeout_s, or "
                "look at the disk or the store."
            )

    def check(self) -> None:
        """Raise the CheckpointError of work that has failed. Only after `wait`."""
        for failure in self._failures:
            raise failure
        if not self._through:
            raise CheckpointError(f"{self._what} ended by an error of the program, which is printed above.")

    def _run(self) -> None:
        try:
            self._work()
        except CheckpointError as error:
            self._failures = (error,)
        self._through = True
