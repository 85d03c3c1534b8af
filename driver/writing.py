"""Work in the background, one at a time, whose failure comes back to whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from common.errors import CheckpointError, StuckError


class Writing:
    """One piece of work in a thread of its own. what: names it in errors.

    The work may raise CheckpointError. The thread ends with the process, finished or not.
    """

    def __init__(self, work: Callable[[], None], what: str) -> None:
        self._work = work
        self._what = what
        self._failures: tuple[CheckpointError, ...] = ()
        self._through = False
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._thread.is_alive()

    def start(self) -> Writing:
        """Begin."""
        self._thread.start()
        return self

    def wait(self, limit_s: float) -> None:
        """Until it is through. Raises its CheckpointError; StuckError after limit_s."""
        self._thread.join(limit_s)
        if self._thread.is_alive():
            raise StuckError(
                f"Waited {limit_s:.0f} s for {self._what}, in vain. Raise checkpoint.timeout_s, or look at "
                "the disk or the store."
            )
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
