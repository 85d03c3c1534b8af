"""Says who is stuck on what, while nothing moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_NOTE_S = 30.0
NEXT_NOTES_S = 60.0
LOOK_S = 1.0


class StallReporter:
    """Owned by whoever waits. note: shows a person a line; clock: seconds, monotonic."""

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.note = note
        self._clock = clock
        self._waits: list[tuple[str, Callable[[], str]]] = []
        self.moved()

    def moved(self) -> None:
        """Something has become ready."""
        self._moved_at = self._clock()
        self._next_note_at = self._moved_at + FIRST_NOTE_S

    @contextmanager
    def waiting_for(self, what: str, progress: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Inside, the run waits for this, in words; its end is a movement. progress: how far it is."""
        wait = what, progress
        self._waits.append(wait)
        try:
            yield
        finally:
            self._waits.remove(wait)
            self.moved()

    def waits(self) -> list[str]:
        """What the run waits for now, in words."""
        return [f"{what}{progress()}" for what, progress in self._waits]

    def look(self, in_work: Callable[[], list[str]]) -> None:
        """Say so where nothing has moved for long. in_work: who works on what, in words; asked where it is
        time to say so."""
        now = self._clock()
        if now < self._next_note_at:
            return
        self._next_note_at = now + NEXT_NOTES_S
        lines = [*(f"the run waits for {what}" for what in self.waits()), *in_work()]
        self.note(f"Nothing has moved for {now - self._moved_at:.0f} s: {'; '.join(lines)}.")

    async def watch(self, in_work: Callable[[], list[str]]) -> None:
        """`look` once a second, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look(in_work)
