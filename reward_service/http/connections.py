"""The connections of a server of one process: one without a request neither stays nor crowds others."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 128
"""Connections taken up in one turn of the event loop."""

MOST_WAITING = 3 * BACKLOG
"""A client that sends its request as it connects waits for two turns at most, so that fewer than this many
came after it: it is never the one that has waited longest."""


class Waiting:
    """The connections whose next request's head has not arrived, in the order in which they began to wait.

    One that waits longer than `seconds` is closed, however it drips; so is the first of more than
    MOST_WAITING.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def begin(self, transport: asyncio.Transport) -> None:
        """This connection waits from here on."""
        self.end(transport)
        # Aborted, because closing would wait for a client that does not read.
        self._ends[transport] = asyncio.get_running_loop().call_later(self._seconds, transport.abort)
        if len(self._ends) > MOST_WAITING:
            first = next(iter(self._ends))
            self.end(first)
            first.abort()

    def end(self, transport: asyncio.Transport) -> None:
        """A request's head has arrived, or the connection is gone."""
        if transport in self._ends:
            self._ends.pop(transport).cancel()


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, under the rule of `waiting`, which all connections of a server share."""

    def __init__(self, waiting: Waiting, **given: Any) -> None:
        super().__init__(**given)
        self._waiting = waiting

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._waiting.begin(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._waiting.end(self.transport)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Bytes have arrived: where they complete a head, uvicorn has begun to answer."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._waiting.end(self.transport)

    def on_response_complete(self) -> None:
        """What is left of this request's body belongs to the wait for the next one."""
        self._waiting.begin(self.transport)
        super().on_response_complete()
