"""Taking a request's body within the limits: counted while it arrives, together with all other requests'."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.types import Receive

from reward_service.http.errors import BAD_REQUEST, OVERLOADED, TOO_LARGE, TOO_SLOW, Refusal
from reward_service.http.limits import HttpLimits

_RETRY_S = 1.0
_DISCARD_S = 5.0

T = TypeVar("T")


class Room:
    """The bytes that all requests of a process may hold at one time. For many threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take so many bytes. Raises Refusal (overloaded) where they are not free."""
        with self._lock:
            if self._held_bytes + count > self._limit_bytes:
                raise Refusal(OVERLOADED, "Other requests fill the memory of this server.", _RETRY_S)
            self._held_bytes += count

    def give(self, count: int) -> None:
        """Give so many bytes back."""
        with self._lock:
            self._held_bytes -= count


class Share:
    """What one request holds of the room; given back where the last of its `with` blocks ends.

    For the request and the thread that decodes its body, which enters it too: a request may be cancelled, the
    thread may not, and what it holds stays counted until it is done. Once given back it takes nothing more.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._held_bytes = 0
        self._inside = 0
        self._ended = False

    def take(self, count: int) -> None:
        """Take so many bytes more. Raises Refusal (overloaded, or the request has ended)."""
        with self._lock:
            self._check_open()
            self._room.take(count)
            self._held_bytes += count

    def __enter__(self) -> Share:
        with self._lock:
            self._check_open()
            self._inside += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._ended = True
                self._room.give(self._held_bytes)

    def _check_open(self) -> None:
        if self._ended:
            raise Refusal(BAD_REQUEST, "The request has ended.")


class Arrivals:
    """The bodies that are arriving: at most so many, the slowest gives way. For one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: dict[asyncio.Timeout, None] = {}

    async def wait(self, body: Awaitable[T], seconds: float) -> T:
        """What arrives. Raises Refusal where it takes longer, or this one is the slowest of too many."""
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                self._under_way[limit] = None
                if len(self._under_way) > self._most:
                    self._give_way(next(iter(self._under_way)))
                return await body
        except TimeoutError as error:
            raise Refusal(
                TOO_SLOW,
                f"The body did not arrive within {seconds:g} s, or before {self._most} that began later.",
                _RETRY_S,
            ) from error
        finally:
            self._under_way.pop(limit, None)

    def _give_way(self, slowest: asyncio.Timeout) -> None:
        del self._under_way[slowest]
        if not slowest.expired():
            slowest.reschedule(0.0)


async def read_body(
    receive: Receive, headers: Headers, limits: HttpLimits, share: Share, arrivals: Arrivals
) -> bytes:
    """The whole body. Raises Refusal where it is too large, too slow, or there is no room for it."""
    return await arrivals.wait(_read(receive, headers, limits, share), limits.body_seconds)


async def discard(receive: Receive, headers: Headers, limits: HttpLimits, arrivals: Arrivals) -> None:
    """Let an unwanted body arrive, for a while, and drop it."""
    with suppress(Refusal):
        await arrivals.wait(_drop(receive, headers, limits), limits.body_seconds)


async def _read(receive: Receive, headers: Headers, limits: HttpLimits, share: Share) -> bytes:
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.body_bytes:
        await _drop(receive, headers, limits)
        raise _too_large(limits)
    pieces: list[bytes] = []
    taken, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(BAD_REQUEST, "The client went away before its body had arrived.")
        piece, more = message.get("body", b""), message.get("more_body", False)
        taken += len(piece)
        if taken > limits.body_bytes:
            pieces.clear()
            await (_drop(receive, headers, limits) if more else asyncio.sleep(0))
            raise _too_large(limits)
        share.take(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


async def _drop(receive: Receive, headers: Headers, limits: HttpLimits) -> None:
    """A client that is still sending when the connection closes may see only that, and not why."""
    if headers.get("expect", "").lower() == "100-continue":
        return
    dropped, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while more and dropped <= limits.body_bytes:
                message = await receive()
                dropped += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)


def _too_large(limits: HttpLimits) -> Refusal:
    return Refusal(TOO_LARGE, f"The body is too large; allowed: {limits.body_bytes} bytes.")
