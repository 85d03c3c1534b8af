"""Ctrl-C and SIGTERM: the first asks the run to stop with a checkpoint, the second stops it at once."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import Any


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """A stop has been asked for."""


class StopFlag:
    """Set by the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt. A context manager, to be
    entered after ray.init, which sets a handler of its own.

    Work looks at it where it suits: `check`, or `first_of` while it waits.
    """

    def __init__(self) -> None:
        self._asked = False
        self._earlier: dict[int, Any] = {}
        self._told: asyncio.Future[None] | None = None

    def check(self) -> None:
        """Raise StopRequested where a stop has been asked for."""
        if self._asked:
            raise StopRequested

    async def first_of(self, *futures: asyncio.Future[Any]) -> None:
        """Wait until one of them is done, without taking its result. Raises StopRequested."""
        told = self._telling()
        self.check()
        await asyncio.wait({*futures, told}, return_when=asyncio.FIRST_COMPLETED)
        self.check()

    async def asked(self) -> None:
        """Wait until a stop has been asked for."""
        told = self._telling()
        if not self._asked:
            await asyncio.wait({told})

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _telling(self) -> asyncio.Future[None]:
        """Done once a stop has been asked for, in the loop that runs now."""
        loop = asyncio.get_running_loop()
        if self._told is None or self._told.get_loop() is not loop:
            self._told = loop.create_future()
        return self._told

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if self._told is not None and not self._told.get_loop().is_closed():
            self._told.get_loop().call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._told is not None and not self._told.done():
            self._told.set_result(None)
