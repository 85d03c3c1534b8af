"""A clock beside a working thread: one lasting thread that speaks up where a span of work takes too long."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONGEST_NAP_S = 3600.0


class Watchdog:
    """Calls `alarm` with the reason where one of its spans is not over in time.

    One thread opens spans, one after the other. A thread of the watchdog's own keeps the time, so that work
    which never returns is noticed.
    """

    def __init__(self, name: str, alarm: Callable[[str], None]) -> None:
        self._alarm = alarm
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name=f"watches {name}", daemon=True)
        self._ends_at = math.inf
        self._reason = ""
        self._looks_at = math.inf
        self._closed = False

    def start(self) -> None:
        """Keep the time from here on."""
        self._thread.start()

    def close(self) -> None:
        """Let the watchdog's thread end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @contextmanager
    def span(self, limit_s: float, reason: str) -> Iterator[None]:
        """Work that may take limit_s seconds; otherwise the alarm is called, once, with this reason."""
        with self._changed:
            self._ends_at, self._reason = time.monotonic() + limit_s, reason
            # Spans end later and later, so waking the thread for each would be in vain.
            if self._ends_at < self._looks_at:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._ends_at = math.inf

    def _watch(self) -> None:
        while reason := self._overdue():
            self._alarm(reason)

    def _overdue(self) -> str:
        """Wait for a span that is not over in time; its reason, or nothing once the watchdog is closed."""
        with self._changed:
            while not self._closed:
                if self._ends_at <= time.monotonic():
                    self._ends_at = math.inf
                    return self._reason
                self._looks_at = self._ends_at
                # Capped, because a condition cannot wait for any number of seconds.
                self._changed.wait(min(self._ends_at - time.monotonic(), _LONGEST_NAP_S))
            return ""
