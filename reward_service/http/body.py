"""Taking a request's body within the limits: counted while it arrives, together with all other requests'."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from starlette.datastructures import Headers
from starlette.types import Receive

from reward_service.http.errors import BAD_REQUEST, OVERLOADED, TOO_LARGE, TOO_SLOW, Refusal
from reward_service.http.limits import HttpLimits

_RETRY_S = 1.0
_DISCARD_S = 5.0


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

    @property
    def held_bytes(self) -> int:
        """What is taken now."""
        return self._held_bytes


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


async def read_body(receive: Receive, headers: Headers, limits: HttpLimits, share: Share) -> bytes:
    """The whole body. Raises Refusal where it is too large, too slow, or there is no room for it."""
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await _read(receive, headers, limits, share)
    except TimeoutError as error:
        raise Refusal(
            TOO_SLOW, f"The body did not arrive within {limits.body_seconds:g} s.", _RETRY_S
        ) from error


async def discard(receive: Receive, headers: Headers, limits: HttpLimits) -> None:
    """Let an unwanted body arrive, for a while, and drop it.

    A client that is still sending when the connection closes may see only that, and not why it was refused.
    """
    if headers.get("expect", "").lower() == "100-continue":
        return
    try:
        async with asyncio.timeout(_DISCARD_S):
            await _drop(receive, limits.body_bytes)
    except TimeoutError:
        return


async def _read(receive: Receive, headers: Headers, limits: HttpLimits, share: Share) -> bytes:
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.body_bytes:
        await discard(receive, headers, limits)
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
            await (discard(receive, headers, limits) if more else asyncio.sleep(0))
            raise _too_large(limits)
        share.take(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


async def _drop(receive: Receive, most_bytes: int) -> None:
    dropped, more = 0, True
    while more and dropped <= most_bytes:
        message = await receive()
        dropped += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)


def _too_large(limits: HttpLimits) -> Refusal:
    return Refusal(TOO_LARGE, f"The body is too large; allowed: {limits.body_bytes} bytes.")
