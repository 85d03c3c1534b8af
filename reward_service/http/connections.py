"""The connections of a server of one process: one without a request neither stays nor crowds others."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 128
"""Connections taken up in one turn of the event loop."""

MOST_FILES = 8192
"""Open files that a server asks for, as far as the system allows."""

_OTHER_FILES = 640
"""Those of the requests that are answered (gate.py), and of the process itself."""


class Waiting:
    """The connections whose next request's head has not arrived, in the order in which they began to wait.

    One that waits longer than `seconds` is closed, however it drips; so is the first of more than `most`.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._ends: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def begin(self, transport: asyncio.Transport) -> None:
        """This connection waits from here on."""
        self.end(transport)
        # Aborted, because closing would wait for a client that does not read.
        self._ends[transport] = asyncio.get_running_loop().call_later(self._seconds, transport.abort)
        if len(self._ends) > self._most:
            first = next(iter(self._ends))
            self.end(first)
            first.abort()

    def end(self, transport: asyncio.Transport) -> None:
        """A request's head has arrived, or the connection is gone."""
        if transport in self._ends:
            self._ends.pop(transport).cancel()


def most_waiting() -> int:
    """How many connections may wait, by the open files of this process, whose limit is raised to MOST_FILES.

    Never so few that a client which sends its request as it connects could be the one that waits longest: it
    waits for two turns of the event loop at most.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(3 * BACKLOG, wanted - _OTHER_FILES)


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
