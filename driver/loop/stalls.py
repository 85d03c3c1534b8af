"""Says who is stuck on what, while nothing moves."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_NOTE_S = 30.0
NEXT_NOTES_S = 60.0


class StallReporter:
    """Owned by whoever waits. note: shows a person a line; clock: seconds, monotonic."""

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._note = note
        self._clock = clock
        self._moved_at = clock()
        self._next_note_at = self._moved_at + FIRST_NOTE_S

    def moved(self) -> None:
        """Something has become ready."""
        self._moved_at = self._clock()
        self._next_note_at = self._moved_at + FIRST_NOTE_S

    def look(self, in_work: Callable[[], list[str]]) -> None:
        """Nothing is ready. in_work: who works on what, in words; only asked where it is time to say so."""
        now = self._clock()
        if now < self._next_note_at:
            return
        self._next_note_at = now + NEXT_NOTES_S
        self._note(f"Nothing has moved for {now - self._moved_at:.0f} s: {'; '.join(in_work())}.")
