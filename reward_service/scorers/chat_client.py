"""Asking any OpenAI-compatible /chat/completions endpoint: bounded in time, tries, threads and bytes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from pydantic import BaseModel, Field, ValidationError, field_validator

from common.config.fields import Section, setting
from common.errors import RewardError
from reward_service.http.client import Retrying, check_address
from reward_service.http.loopback import is_loopback
from reward_service.http.replies import Answer, retry_after_s
from reward_service.http.token import Token

Message = dict[str, Any]

_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
_CONNECT_LIMIT_S = 10.0
_READ_BYTES = 1 << 16
_MOST_BYTES = 1 << 20
_PLAIN = "identity"
_GRACE_S = 1.0


class ChatOptions(Section):
    """Where a judge is, and what asking it may cost."""

    base_url: str = setting(
        ..., "", "What stands before /chat/completions, e.g. http://127.0.0.1:8000/v1.", min_length=1
    )
    model: str = setting(..., "", "The model's name at the endpoint.", min_length=1)
    api_key_env: str = setting("", "", "Environment variable that holds the API key; empty = no key.")
    insecure: bool = setting(False, "", "Send the key even over http:// to another machine.")
    temperature: float = setting(0.0, "", "Sampling temperature of the judge.", ge=0.0, le=2.0)
    max_tokens: int = setting(256, "tokens", "Longest answer.", ge=1)
    extra_body: str = setting(
        "", "", 'A JSON object joined to every request; a null takes a key out, e.g. {"max_tokens": null}.'
    )
    repeatable: bool = setting(
        True, "", "False: the endpoint answers otherwise when asked again, even at temperature 0."
    )
    timeout_s: float = setting(60.0, "s", "Longest that one request may take.", gt=0.0)
    deadline_s: float = setting(
        100.0, "s", "Longest that all requests of one batch may take, retries and waits included.", gt=0.0
    )
    concurrency: int = setting(8, "requests", "Requests under way at once, at most.", ge=1, le=256)
    tries: int = setting(4, "tries", "How often one request is sent before it has failed.", ge=1, le=20)

    @field_validator("extra_body")
    @classmethod
    def _an_object(cls, value: str) -> str:
        _read_object(value)
        return value

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The request's JSON."""
        own = {
            "model": self.model,
            "messages": list(messages),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        joined = own | _read_object(self.extra_body)
        return {name: value for name, value in joined.items() if value is not None}

    def decisive(self) -> dict[str, str | int | float | bool]:
        """The options that decide what the judge says."""
        return self.model_dump(include={"model", "temperature", "max_tokens", "extra_body"})


class ChatClient:
    """Sends requests to the endpoint from a few threads and gives the texts that it answers.

    Failures that may pass (no connection, too slow, 408, 409, 429, 5xx) are tried again, up to `tries` times,
    after waits with jitter that double, at least a server's Retry-After, and never beyond `deadline_s`.
    """

    def __init__(self, options: ChatOptions, retrying: Retrying | None = None) -> None:
        self._options = options
        self._retrying = retrying or Retrying(tries=options.tries)
        self._local = threading.local()

    def ask_all(self, requests_of_messages: Sequence[Sequence[Message]]) -> list[str]:
        """The answers, in order. The first failure ends the rest. Raises RewardError."""
        end_at = time.monotonic() + self._options.deadline_s
        futures = [self._pool.submit(self._ask, messages, end_at) for messages in requests_of_messages]
        try:
            wait(futures, end_at - time.monotonic() + _GRACE_S, return_when=FIRST_EXCEPTION)
            done = [future.result() for future in futures if future.done()]
        finally:
            for future in futures:
                future.cancel()
        if len(done) < len(futures):
            raise self._late("waiting for its answers")
        return done

    def _ask(self, messages: Sequence[Message], end_at: float) -> str:
        problem, tried = "waiting for a free thread (raise concurrency)", 0
        while time.monotonic() < end_at:
            tried += 1
            asked_for_s = 0.0
            try:
                answer = self._post(messages, min(end_at, time.monotonic() + self._options.timeout_s))
            except (OSError, urllib3.exceptions.HTTPError) as error:
                problem = _in_words(self._error, error)
            else:
                if answer.status == requests.codes.ok:
                    return self._content(answer)
                problem, asked_for_s = f"answered {answer.status}: {_said(answer)}", retry_after_s(answer)
                if answer.status not in _RETRIED:
                    raise self._error(problem)
            if tried == self._options.tries:
                raise self._error(f"failed {tried} times; the last: {problem}")
            wait_s = self._retrying.wait_s(tried, asked_for_s)
            if time.monotonic() + wait_s >= end_at:
                break
            time.sleep(wait_s)
        raise self._late(problem)

    def _post(self, messages: Sequence[Message], end_at: float) -> Answer:
        left_s = max(end_at - time.monotonic(), 0.001)
        url = self._options.base_url.rstrip("/") + "/chat/completions"
        response = self._session.post(
            url,
            json=self._options.body(messages),
            # A compressed answer could be far larger than what arrives.
            headers={"Accept-Encoding": _PLAIN},
            auth=_Bearer(self._key),
            timeout=(min(left_s, _CONNECT_LIMIT_S), left_s),
            allow_redirects=False,
            stream=True,
        )
        with response:
            body = _read(response, end_at)
        self._check_plain(response)
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return Answer(response.status_code, kind, dict(response.headers), body)

    def _check_plain(self, response: requests.Response) -> None:
        """Raises RewardError where an answer was compressed all the same. Of others the status is enough."""
        encoding = response.headers.get("Content-Encoding", _PLAIN).strip().lower()
        if response.status_code == requests.codes.ok and encoding != _PLAIN:
            raise self._error(f"answered in the encoding {encoding[:40]!r}, and was asked for {_PLAIN!r}.")

    def _content(self, answer: Answer) -> str:
        try:
            choice = _Completion.model_validate_json(answer.body).choices[0]
        except ValidationError as error:
            raise self._error(f"gave no chat completion with a text: {_said(answer)}") from error
        if choice.finish_reason == "length":
            raise self._error(f"was cut off at max_tokens = {self._options.max_tokens}; raise it.")
        return choice.message.content

    @property
    def _session(self) -> requests.Session:
        """One a thread: sessions are not made to be shared."""
        if not hasattr(self._local, "session"):
            session = requests.Session()
            # A proxy of the environment must not see requests to this machine.
            session.trust_env = not is_loopback(urlsplit(self._options.base_url).hostname or "")
            self._local.session = session
        found: requests.Session = self._local.session
        return found

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        check_address(self._options.base_url, Token(self._key), self._options.insecure)
        return ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="judge")

    @cached_property
    def _key(self) -> str:
        name = self._options.api_key_env
        if not name:
            return ""
        key = os.environ.get(name, "").strip()
        if not key.isascii() or not key.isprintable() or not key:
            raise RewardError(
                f"The environment variable {name} must hold the judge's API key where the reward runs; it "
                f"{'holds characters no key has' if key else 'is not set, or empty'}."
            )
        return key

    def _late(self, problem: str) -> RewardError:
        return self._error(f"did not answer within deadline_s = {self._options.deadline_s:g}: {problem}")

    def _error(self, what: str) -> RewardError:
        return RewardError(f"The judge {self._options.model!r} at {self._options.base_url} {what}")


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Bearer(requests.auth.AuthBase):
    """Adds the key. Given as auth, not as a header: a .netrc file would replace the header."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _read(response: requests.Response, end_at: float) -> bytes:
    """The body as it is sent. Raises RewardError where it is too long, and TimeoutError at the deadline."""
    pieces: list[bytes] = []
    taken = 0
    while piece := response.raw.read1(_READ_BYTES, decode_content=False):
        taken += len(piece)
        if taken > _MOST_BYTES:
            raise RewardError(
                f"{response.url} answered more than {_MOST_BYTES} bytes; it is no chat endpoint."
            )
        if time.monotonic() > end_at:
            raise TimeoutError("the time was over while the answer arrived")
        pieces.append(piece)
    return b"".join(pieces)


def _in_words(make_error: Callable[[str], RewardError], error: Exception) -> str:
    """The problem in words. Raises RewardError where asking again cannot help."""
    words = f"{type(error).__name__}: {error}"[:300]
    passing = requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError
    lasting = isinstance(error, requests.RequestException) and not isinstance(error, passing)
    if lasting or isinstance(error, requests.exceptions.SSLError):
        raise make_error(f"cannot be asked: {words}") from error
    return words


def _said(answer: Answer) -> str:
    return " ".join(answer.body[:300].decode("utf-8", "replace").split()) or "(nothing)"


def _read_object(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        read = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"must be a JSON object: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"must be a JSON object, got {type(read).__name__}")
    return read
