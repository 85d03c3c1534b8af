"""Asking any OpenAI-compatible /chat/completions endpoint: bounded in time, tries, requests and bytes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError, field_validator

from common.config.fields import Section, setting
from common.errors import RewardError
from reward_service.http.address import check_address, is_on_this_machine
from reward_service.http.token import Token

Message = dict[str, Any]

_CONNECT_LIMIT_S = 10.0
_MOST_BYTES = 1 << 20


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
    timeout_s: float = setting(60.0, "s", "Longest silence of the endpoint within one request.", gt=0.0)
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

    def settings(self) -> dict[str, Any]:
        """What a request holds beside the model and the messages."""
        joined = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **_read_object(self.extra_body),
        }
        return {name: value for name, value in joined.items() if value is not None}

    def decisive(self) -> dict[str, str | int | float | bool]:
        """The options that decide what the judge says."""
        return self.model_dump(include={"model", "temperature", "max_tokens", "extra_body"})


class ChatClient:
    """Sends requests to the endpoint, a few at a time, and gives the texts that it answers.

    Failures that may pass (no connection, too slow, 408, 409, 429, 5xx) are tried again, up to `tries` times,
    after waits with jitter that double, or a server's Retry-After, and never beyond `deadline_s`.
    """

    def __init__(self, options: ChatOptions) -> None:
        self._options = options

    def ask_all(self, requests: Sequence[Sequence[Message]]) -> list[str]:
        """The answers, in order. The first failure ends the rest. Raises RewardError."""
        return asyncio.run(self._ask_all(requests))

    async def _ask_all(self, requests: Sequence[Sequence[Message]]) -> list[str]:
        free = asyncio.Semaphore(self._options.concurrency)
        try:
            async with asyncio.timeout(self._options.deadline_s), self._client() as client:
                return await asyncio.gather(*(self._ask(client, free, messages) for messages in requests))
        except TimeoutError as error:
            raise self._error(f"did not answer within deadline_s = {self._options.deadline_s:g}.") from error

    async def _ask(
        self, client: openai.AsyncOpenAI, free: asyncio.Semaphore, messages: Sequence[Message]
    ) -> str:
        chat: Any = client.chat.completions.with_raw_response
        # The package would send a key of its own environment variable, which is not for this endpoint.
        headers = {} if self._options.api_key_env else {"Authorization": openai.Omit()}
        async with free:
            try:
                answer = await chat.create(
                    model=self._options.model,
                    messages=messages,
                    extra_body=self._options.settings(),
                    extra_headers=headers,
                )
            except openai.APIStatusError as error:
                raise self._error(f"answered {error.status_code}: {_said(error.response.content)}") from error
            except openai.APIConnectionError as error:
                tried = f"failed {self._options.tries} times; the last"
                raise self._error(f"{tried}: {type(error).__name__}: {error.__cause__ or error}") from error
        return self._content(answer.http_response.content)

    def _content(self, body: bytes) -> str:
        try:
            choice = _Completion.model_validate_json(body).choices[0]
        except ValidationError as error:
            raise self._error(f"gave no chat completion with a text: {_said(body)}") from error
        if choice.finish_reason == "length":
            raise self._error(f"was cut off at max_tokens = {self._options.max_tokens}; raise it.")
        return choice.message.content

    def _client(self) -> openai.AsyncOpenAI:
        options, key = self._options, self._key()
        check_address(options.base_url, Token(key), options.insecure)
        http_client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(options.timeout_s, connect=min(options.timeout_s, _CONNECT_LIMIT_S)),
            follow_redirects=False,
            trust_env=not is_on_this_machine(options.base_url),
            event_hooks={"response": [_bound]},
        )
        return openai.AsyncOpenAI(
            base_url=options.base_url,
            api_key=key or "none",
            admin_api_key="",
            max_retries=options.tries - 1,
            timeout=http_client.timeout,
            default_headers={"Accept-Encoding": "identity"},
            http_client=http_client,
        )

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

    def _error(self, what: str) -> RewardError:
        return RewardError(f"The judge {self._options.model!r} at {self._options.base_url} {what}")


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Bounded(httpx2.AsyncByteStream):
    """The beginning of an answer: the rest of one that is too long for a chat completion is not read."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = 0
        async for piece in self._stream:
            taken += len(piece)
            yield piece
            if taken > _MOST_BYTES:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    """Before an answer is read: it is cut where it is too long, and not inflated where it is compressed."""
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Bounded(response.stream)
    response.headers.pop("content-encoding", None)


def _said(body: bytes) -> str:
    return " ".join(body[:300].decode("utf-8", "replace").split()) or "(nothing)"


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
