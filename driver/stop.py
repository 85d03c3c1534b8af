"""Ctrl-C and SIGTERM: the first asks the run to stop with a checkpoint, the second stops it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequested(Exception):
    """Raised between two pieces of work where a stop has been asked for."""


class StopFlag:
    """Set by the first SIGINT or SIGTERM. Use as a context manager around the run."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._earlier: dict[int, object] = {}

    @property
    def asked(self) -> bool:
        """Whether a stop has been asked for."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raise StopRequested where a stop has been asked for."""
        if self.asked:
            raise StopRequested

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._asked.set()
