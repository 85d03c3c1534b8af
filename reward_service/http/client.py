"""Asking a reward over HTTP: one group at a time, with retries, a cap on them and a deadline."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from http import HTTPStatus

import httpx2
import numpy as np
import tenacity
from numpy.typing import NDArray
from pydantic import ValidationError

from common.errors import RewardError
from common.hidden import hide
from reward_service.contract.results import Description, Reply, RewardFailure
from reward_service.http.address import check_address, is_on_this_machine
from reward_service.http.errors import LOST, ErrorBody, ErrorDetail
from reward_service.http.replies import DESCRIPTION, decode_reply, first_problem
from reward_service.http.token import NO_TOKEN, Token
from reward_service.http.wire import JSON_TYPE, SAFETENSORS, Group, Wire

_SCORER_FAILED = 424
_PASSING = frozenset({408, 429, 502, 503, 504})
_UNKNOWN = "unknown"
_CONNECT_LIMIT_S = 10.0
_KEPT_S = 60.0
_SEND_BYTES = 1 << 18
_SPARE_BYTES = 1 << 20
_BYTES_OF_A_NUMBER = 80
_LONGEST_REASON = 1000
_LONGEST_RETRY_AFTER_S = 3600.0
_REPEATS = 1
"""How often a group is sent again whose connection broke after all of it had been sent: a kept connection may
be of a server that has restarted since, or a proxy in between may have ended."""

_ADVICE = {
    400: "Client and server may be of different versions.",
    401: "Check that client and server hold the same token (environment variable or file).",
    403: "A proxy in between may refuse it.",
    404: "Check the address: what stands before /v1/score, with the application's name where it has one.",
    408: "The network is too slow for such bodies: send fewer images, or raise the server's body_seconds.",
    413: "Send fewer or smaller images, or raise the server's limits.",
    415: "Client and server may be of different versions.",
    429: "Its queue is full: add replicas, or send fewer groups at a time.",
    500: "Look into the server's log.",
    502: "The proxy before it reaches no server.",
    503: "It is not ready or overloaded: look at its /v1/ready and its log.",
    504: "Scoring took too long: add replicas or raise its time limit.",
}


class UnansweredError(RewardError):
    """Nobody took the group, or no answer came in time. Asking again later may help."""


class LostGroupError(RewardError):
    """The group was taken and its scorer or the connection died: it may be what kills scorers."""


@dataclass(frozen=True)
class Retrying:
    """When to ask again: at most `tries` times in all, after waits that double from first_wait_s on.

    A wait is drawn at random from half of its length on, so that clients do not come back together; a
    server's Retry-After is waited for before it.
    """

    tries: int = 8
    first_wait_s: float = 0.25
    longest_wait_s: float = 10.0

    def attempts(self, deadline_s: float) -> tenacity.AsyncRetrying:
        """Attempts within deadline_s seconds; no wait is begun that would end later."""
        waits = tenacity.wait_exponential(self.first_wait_s / 2.0, self.longest_wait_s / 2.0)
        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.tries) | tenacity.stop_before_delay(deadline_s),
            wait=tenacity.wait_exception(_asked_for_s) + waits + tenacity.wait_random(0, self.first_wait_s),
            retry=tenacity.retry_if_exception(_is_worth_asking_again),
            reraise=True,
        )


RETRYING = Retrying()


@dataclass(frozen=True, eq=False, repr=False)
class _AtAddress:
    """A reward behind an address.

    base_url: what stands before /v1/score, e.g. http://127.0.0.1:8000/pickscore. token: sent with every
    request. deadline_s: longest that one call takes, retries and waits included. wire: SAFETENSORS, or JSON,
    which costs several times more. insecure: allow to send the token unencrypted to another machine.
    """

    base_url: str
    token: Token = NO_TOKEN
    deadline_s: float = 300.0
    wire: Wire = SAFETENSORS
    retrying: Retrying = RETRYING
    insecure: bool = False


class AsyncHttpReward(_AtAddress):
    """For one event loop; connections are kept between calls."""

    async def score(self, prompt: str, images: NDArray[np.uint8]) -> Reply:
        """Score one group, uint8 (B, height, width, 3). A RewardFailure where the scorer failed.

        Raises UnansweredError where no answer comes in these tries and by the deadline, LostGroupError where
        its scorer died or the connection broke after all of it had been sent, and RewardError where the
        server refuses, or its answer is not finite, of another count or shape, not antisymmetric, or without
        a stamp.
        """
        count = len(images)
        body = self.wire.encode_group(Group(prompt, images))
        most_bytes = _SPARE_BYTES + count * (count + 1) * _BYTES_OF_A_NUMBER
        answer = await self._ask("POST", "/v1/score", body, most_bytes)
        if answer.status == _SCORER_FAILED:
            return Reply(RewardFailure(answer.explanation), busy_s=0.0)
        if answer.content_type != JSON_TYPE:
            raise self._error(f"answered {answer.content_type!r}, not {JSON_TYPE!r}.")
        try:
            return decode_reply(answer.body, count)
        except RewardError as error:
            raise self._error(f"gave no sound score. {error}") from error

    async def describe(self) -> Description:
        """Which reward answers there, and how it is set. Raises RewardError."""
        answer = await self._ask("GET", "/v1/describe", b"", _SPARE_BYTES)
        try:
            return DESCRIPTION.validate_json(answer.body)
        except ValidationError as error:
            raise self._error(f"does not describe itself as a reward does: {first_problem(error)}") from error

    async def aclose(self) -> None:
        """Close the connections."""
        if "_client" in vars(self):
            await self._client.aclose()

    async def _ask(self, method: str, path: str, body: bytes, most_bytes: int) -> _Answer:
        """The answer of status 200 or 424, within the deadline. Raises as `score`."""
        check_address(self.base_url, self.token, self.insecure)
        started = time.monotonic()
        problem, tries, breaks = "it did not answer in time", 0, 0
        try:
            async with asyncio.timeout(self.deadline_s):
                async for attempt in self.retrying.attempts(self.deadline_s):
                    with attempt:
                        tries += 1
                        try:
                            return await self._try(method, path, body, most_bytes)
                        except _PassingError as error:
                            problem = str(error)
                            breaks += error.broke
                            error.again = breaks <= _REPEATS
                            raise
        except (TimeoutError, _PassingError):
            pass
        tried = "1 try" if tries == 1 else f"{tries} tries"
        took = f"{time.monotonic() - started:.1f} s (limit {self.deadline_s:g} s)"
        # Whoever had the whole group when the connection broke may have died of it.
        kind = LostGroupError if breaks else UnansweredError
        raise kind(f"{self._where} gave no answer in {tried} and {took}: {problem}")

    async def _try(self, method: str, path: str, body: bytes, most_bytes: int) -> _Answer:
        """Raises _PassingError where asking again may help, RewardError where it cannot."""
        content = _Content(body)
        try:
            answer = await self._send(method, path, content, most_bytes)
        except httpx2.TransportError as error:
            if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
                raise self._error(f"has no certificate that this machine trusts: {_short(error)}") from error
            if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
                raise self._error(f"cannot be asked: {_short(error)}") from error
            broke = content.is_sent and not isinstance(error, httpx2.TimeoutException)
            raise _PassingError(_short(error), 0.0, broke) from error
        if answer.status in (HTTPStatus.OK, _SCORER_FAILED):
            return answer
        if answer.error.code == LOST:
            raise LostGroupError(f"{self._where} {answer.explanation}")
        if answer.is_passing:
            raise _PassingError(answer.explanation, answer.retry_after_s)
        raise self._error(answer.explanation)

    async def _send(self, method: str, path: str, content: _Content, most_bytes: int) -> _Answer:
        # Without an encoding, because a compressed answer could be far larger than what arrives.
        headers = {"Accept-Encoding": "identity", **self.token.headers()}
        if content.size:
            headers |= {"Content-Type": self.wire.content_type, "Content-Length": str(content.size)}
        url, sent = self.base_url.rstrip("/") + path, content.pieces() if content.size else None
        async with self._client.stream(method, url, headers=headers, content=sent) as response:
            received = bytearray()
            async for piece in response.aiter_raw():
                received += piece
                if len(received) > most_bytes:
                    raise self._error(f"answered more than {most_bytes} bytes; it is no reward service.")
        return _Answer(response.status_code, response.headers, bytes(received))

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        try:
            return httpx2.AsyncClient(
                timeout=httpx2.Timeout(None, connect=_CONNECT_LIMIT_S),
                limits=httpx2.Limits(keepalive_expiry=_KEPT_S),
                follow_redirects=False,
                trust_env=not is_on_this_machine(self.base_url),
            )
        except (ImportError, ValueError) as error:  # a proxy of the environment that it cannot use
            raise self._error(f"cannot be asked: {_short(error)}") from error

    def _error(self, what: str) -> RewardError:
        return RewardError(f"{self._where} {what}")

    @property
    def _where(self) -> str:
        return f"The reward at {self.base_url}"


class HttpReward(_AtAddress):
    """AsyncHttpReward for programs without an event loop. For one thread at a time."""

    @cached_property
    def _reward(self) -> AsyncHttpReward:
        return AsyncHttpReward(**{field.name: getattr(self, field.name) for field in fields(self)})

    @cached_property
    def _runner(self) -> asyncio.Runner:
        return asyncio.Runner()

    def score(self, prompt: str, images: NDArray[np.uint8]) -> Reply:
        """As AsyncHttpReward.score."""
        return self._runner.run(self._reward.score(prompt, images))

    def describe(self) -> Description:
        """As AsyncHttpReward.describe."""
        return self._runner.run(self._reward.describe())

    def close(self) -> None:
        """Close the connections; nothing can be asked afterwards."""
        self._runner.run(self._reward.aclose())
        self._runner.close()


class _PassingError(Exception):
    """Asking again may help. broke: the connection broke after the whole group had been sent."""

    def __init__(self, reason: str, retry_after_s: float, broke: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.broke = broke
        self.again = True


class _Content:
    """A body that knows whether all of it has been sent."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.size = len(body)
        self.is_sent = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Whoever sends it asks for the next piece once the one before has been sent."""
        for start in range(0, self.size, _SEND_BYTES):
            yield self._body[start : start + _SEND_BYTES]
        self.is_sent = True


@dataclass(frozen=True)
class _Answer:
    """An HTTP answer, and what a client makes of one that is no score."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """Without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @cached_property
    def error(self) -> ErrorDetail:
        """What the server says of it, whoever the server is."""
        try:
            return ErrorBody.model_validate_json(self.body).error
        except ValidationError:
            text = self.body[:200].decode("utf-8", "replace")
            return ErrorDetail(code=_UNKNOWN, reason=" ".join(text.split()))

    @property
    def explanation(self) -> str:
        """What it says, with what to do about it."""
        if 300 <= self.status < 400:
            return f"redirects to {hide(self.headers.get('location', 'nowhere'))[:200]}; give that address."
        # It may repeat what it was sent, the token included.
        reason = hide("".join(letter if letter.isprintable() else " " for letter in self.error.reason))
        said = f"answered {self.status} ({hide(self.error.code)[:50]}): {reason[:_LONGEST_REASON]}"
        return f"{said} {_ADVICE.get(self.status, '')}".strip()

    @property
    def is_passing(self) -> bool:
        """Whether it may be gone when asked again: a full queue, a restart, or a 500 that is not the reward's
        own, as Serve's proxy answers while a process behind it has died."""
        is_of_a_proxy = self.error.code == _UNKNOWN
        return self.status in _PASSING or (self.status == HTTPStatus.INTERNAL_SERVER_ERROR and is_of_a_proxy)

    @property
    def retry_after_s(self) -> float:
        """Seconds that the server asks to wait; 0 where it says none, or no sensible number."""
        header = self.headers.get("retry-after", "").strip()
        seconds = self.error.retry_after_s
        if seconds is None:
            seconds = float(header) if header.isdecimal() else 0.0
        return seconds if math.isfinite(seconds) and 0.0 <= seconds <= _LONGEST_RETRY_AFTER_S else 0.0


def _asked_for_s(error: BaseException) -> float:
    return error.retry_after_s if isinstance(error, _PassingError) else 0.0


def _is_worth_asking_again(error: BaseException) -> bool:
    return isinstance(error, _PassingError) and error.again


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(error: BaseException) -> str:
    return hide(f"{type(error).__name__}: {error}")[:300]
