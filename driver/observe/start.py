"""What the start of a run waits for, on the display and in the run folder's status.json."""

from __future__ import annotations

from driver.observe.display import Display, DisplayState
from driver.observe.status import StatusFile


class StartReport:
    """Says each thing once, as soon as it changes."""

    def __init__(self, display: Display, epochs: int) -> None:
        self._display = display
        self._state = DisplayState(epoch=0, epochs=epochs)
        self._status: StatusFile | None = None

    def keep_in(self, status: StatusFile, finished: int) -> None:
        """From here on in status.json too. finished: epochs of the run."""
        self._status = status
        self._state = DisplayState(finished, self._state.epochs, waits_for=self._state.waits_for)

    def waits_for(self, what: str) -> None:
        """The start waits for this, in words; called as often as one likes."""
        if what == self._state.waits_for:
            return
        self._state = DisplayState(self._state.epoch, self._state.epochs, waits_for=what)
        self._display.update(self._state)
        if self._status is not None:
            self._status.write(self._state)
