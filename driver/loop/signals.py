"""Ctrl-C and SIGTERM: the first asks the run to stop with a checkpoint, the second stops it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """A stop has been asked for."""


class StopFlag:
    """Set by the first SIGINT or SIGTERM. Use as a context manager, after ray.init (which sets a handler of
    its own).

    Outside `deferred` the signal raises StopRequested at once; inside, only `check` does, where it suits the
    work.
    """

    def __init__(self) -> None:
        self._asked = False
        self._deferred = False
        self._earlier: dict[int, object] = {}

    def check(self) -> None:
        """Raise StopRequested where a stop has been asked for."""
        if self._asked:
            raise StopRequested

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal is only noted; a second one raises KeyboardInterrupt."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if not self._deferred:
            raise StopRequested
