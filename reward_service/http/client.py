"""Asking a reward over HTTP: one group at a time, with retries, a cap on them and a deadline."""

from __future__ import annotations

import io
import random
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
import requests
import urllib3
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.results import Description, NoShadow, Reply, RewardFailure
from reward_service.http.loopback import is_loopback
from reward_service.http.replies import Answer, explain, is_lost, is_passing, read_description, retry_after_s
from reward_service.http.token import NO_TOKEN, Token
from reward_service.http.wire import ARROW, Group, Wire
from reward_service.http.wire_checks import check_pixels

_SCORER_FAILED = 424
_CONNECT_LIMIT_S = 10.0
_READ_BYTES = 1 << 16
_SEND_BYTES = 1 << 18
_SPARE_BYTES = 1 << 20
_BYTES_OF_A_NUMBER = 80
_SHORTEST_WAIT_S = 0.001
_REPEATS = 1
"""How often a group is sent again whose connection broke after all of it had been sent: a kept connection may
be of a server that has restarted since, or a proxy in between may have ended."""


class UnansweredError(RewardError):
    """Nobody took the group, or no answer came in time. Asking again later may help."""


class LostGroupError(RewardError):
    """The group was taken and its scorer or the connection died: it may be what kills scorers."""


@dataclass(frozen=True)
class Retrying:
    """When to ask again: at most `tries` times in all, after waits that double from first_wait_s on.

    A wait is drawn between half of its length and the whole, so that clients do not come back together; a
    server's Retry-After is waited for at least.
    """

    tries: int = 8
    first_wait_s: float = 0.25
    longest_wait_s: float = 10.0

    def wait_s(self, tried: int, asked_for_s: float) -> float:
        """Seconds before the next try, after so many; asked_for_s: the server's Retry-After, 0 for none."""
        own = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (tried - 1))
        return asked_for_s + own * random.uniform(0.5, 1.0)


RETRYING = Retrying()
_LATE = (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)


class HttpReward:
    """A reward behind an address. For one thread; a connection is kept between calls.

    base_url: what stands before /v1/score, e.g. http://127.0.0.1:8000/pickscore. token: sent with every
    request. deadline_s: longest that one call takes, retries and waits included. wire: ARROW, or JSON, which
    costs several times more. insecure: allow to send the token unencrypted to another machine.
    """

    def __init__(
        self,
        base_url: str,
        token: Token = NO_TOKEN,
        deadline_s: float = 300.0,
        wire: Wire = ARROW,
        retrying: Retrying = RETRYING,
        insecure: bool = False,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._token = token
        self._deadline_s = deadline_s
        self._wire = wire
        self._retrying = retrying
        self._insecure = insecure
        self._session = _session()

    def score(self, prompt: str, pixels: NDArray[np.uint8]) -> Reply:
        """Score one group, uint8 (B, height, width, 3). A RewardFailure where the scorer failed.

        Raises UnansweredError where no answer comes in these tries and by the deadline, LostGroupError where
        its scorer died or the connection broke after all of it had been sent, and RewardError where the
        server refuses, or its answer is not finite, of another count or shape, not antisymmetric, or without
        a stamp.
        """
        check_pixels(pixels)
        images = len(pixels)
        body = self._wire.encode_group(Group(prompt, pixels))
        most = _SPARE_BYTES + images * (images + 1) * _BYTES_OF_A_NUMBER
        answer = self._ask("POST", "/v1/score", body, most)
        if answer.status == _SCORER_FAILED:
            return Reply(RewardFailure(explain(answer)), busy_s=0.0, shadow=NoShadow())
        if answer.content_type != self._wire.content_type:
            raise self._error(f"answered {answer.content_type!r}, not {self._wire.content_type!r}.")
        try:
            return self._wire.decode_reply(answer.body, images)
        except RewardError as error:
            raise self._error(f"gave no sound score. {error}") from error

    def describe(self) -> Description:
        """Which reward answers there, and how it is set. Raises RewardError."""
        answer = self._ask("GET", "/v1/describe", b"", _SPARE_BYTES)
        try:
            return read_description(answer.body)
        except RewardError as error:
            raise self._error(str(error)) from error

    def close(self) -> None:
        """Close the connection; the next call opens one."""
        self._session.close()

    def _ask(self, method: str, path: str, body: bytes, most_bytes: int) -> Answer:
        """The answer of status 200 or 424, within the deadline. Raises as `score`."""
        check_address(self._base_url, self._token, self._insecure)
        started = time.monotonic()
        end_at = started + self._deadline_s
        problem, tried, breaks = "the deadline leaves no time to ask", 0, 0
        while tried < self._retrying.tries and time.monotonic() < end_at:
            tried += 1
            asked_for_s = 0.0
            sending = _TimedBody(body, end_at)
            try:
                answer = self._try(method, path, sending, most_bytes, end_at)
            except (OSError, urllib3.exceptions.HTTPError) as error:
                self._give_up_on_lasting(error)
                problem = _short(error)
                breaks += sending.is_sent and not isinstance(error, _LATE)
                if breaks > _REPEATS:
                    break
            else:
                if answer.status in (requests.codes.ok, _SCORER_FAILED):
                    return answer
                problem, asked_for_s = explain(answer), retry_after_s(answer)
                if is_lost(answer):
                    raise LostGroupError(f"{self._where} {problem}")
                if not is_passing(answer):
                    raise self._error(problem)
            wait_s = self._retrying.wait_s(tried, asked_for_s)
            if tried == self._retrying.tries or time.monotonic() + wait_s >= end_at:
                break
            time.sleep(wait_s)
        tries = "1 try" if tried == 1 else f"{tried} tries"
        took = f"{time.monotonic() - started:.1f} s (limit {self._deadline_s:g} s)"
        # Whoever had the whole group when the connection broke may have died of it.
        kind = LostGroupError if breaks else UnansweredError
        raise kind(f"{self._where} gave no answer in {tries} and {took}: {problem}")

    def _try(self, method: str, path: str, body: _TimedBody, most_bytes: int, end_at: float) -> Answer:
        left_s = max(end_at - time.monotonic(), _SHORTEST_WAIT_S)
        # A proxy of the environment must not see requests to this machine.
        self._session.trust_env = not is_loopback(_parts(self._base_url).hostname or "")
        headers = {"Accept-Encoding": "identity", "Content-Type": self._wire.content_type}
        response = self._session.request(
            method,
            self._base_url + path,
            data=body if body.size else None,
            headers=headers if body.size else {"Accept-Encoding": "identity"},
            # Given as auth, not as a header: a .netrc file would replace the header.
            auth=_Bearer(self._token),
            timeout=(min(left_s, _CONNECT_LIMIT_S), left_s),
            allow_redirects=False,
            stream=True,
        )
        with response:
            content = _read(response, most_bytes, end_at)
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return Answer(response.status_code, kind, dict(response.headers), content)

    def _give_up_on_lasting(self, error: Exception) -> None:
        """Raises RewardError where asking again cannot help."""
        if isinstance(error, requests.exceptions.SSLError):
            raise self._error(f"has no certificate that this machine trusts: {_short(error)}") from error
        if isinstance(error, requests.RequestException) and not isinstance(
            error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError
        ):
            raise self._error(f"cannot be asked: {_short(error)}") from error

    def _error(self, what: str) -> RewardError:
        return RewardError(f"{self._where} {what}")

    @property
    def _where(self) -> str:
        return f"The reward at {self._base_url}"


def check_address(base_url: str, token: Token, insecure: bool) -> None:
    """Check an address without asking it.

    Raises RewardError where it is no http(s) address, holds credentials, or where the token would travel
    unencrypted to another machine (http:// to a host other than loopback) and `insecure` is False.
    """
    parts = _parts(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise RewardError(
            f"{base_url!r} is no address of a reward; needed is one such as http://127.0.0.1:8000/pickscore "
            "or https://rewards.example.org/pickscore."
        )
    if token.is_set and parts.scheme == "http" and not is_loopback(parts.hostname) and not insecure:
        raise RewardError(
            f"The token would travel unencrypted to {parts.hostname}. Use https, or a tunnel to a port of "
            "this machine; or set insecure: true where the network between is trusted."
        )


class _Bearer(requests.auth.AuthBase):
    """Adds the token to a request."""

    def __init__(self, token: Token) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._token.headers())
        return request


class _LargeBlocks(requests.adapters.HTTPAdapter):
    """Sends bodies in larger pieces than 16 KiB, which costs both ends less."""

    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        super().init_poolmanager(*arguments, blocksize=_SEND_BYTES, **settings)


class _TimedBody(io.BytesIO):
    """A body that stops being sent at the deadline. size: in bytes. is_sent: all of it has been sent."""

    def __init__(self, body: bytes, end_at: float) -> None:
        super().__init__(body)
        self._end_at = end_at
        self.size = len(body)
        self.is_sent = False

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._end_at:
            raise TimeoutError("the deadline passed while the group was sent")
        piece = super().read(size)
        # Whoever sends it asks for more only once the piece before has been sent.
        self.is_sent = not piece
        return piece


def _session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _LargeBlocks())
    return session


def _parts(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        hidden = bool(parts.username or parts.password)
        _ = parts.port
    except ValueError as error:
        raise RewardError(f"{base_url!r} is no address: {error}.") from error
    if hidden:
        raise RewardError("The address of a reward must not hold a user or password; give a token instead.")
    return parts


def _read(response: requests.Response, most_bytes: int, end_at: float) -> bytes:
    """The body as it is sent. Raises RewardError where it is longer, and TimeoutError at the deadline."""
    pieces: list[bytes] = []
    taken = 0
    while piece := response.raw.read1(_READ_BYTES, decode_content=False):
        taken += len(piece)
        if taken > most_bytes:
            raise RewardError(
                f"{response.url} answered more than {most_bytes} bytes; it is no reward service."
            )
        if time.monotonic() > end_at:
            raise TimeoutError("the deadline passed while the answer arrived")
        pieces.append(piece)
    return b"".join(pieces)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
