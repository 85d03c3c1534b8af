"""Calls an HTTP application without sockets, and serves one on a real socket, around a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI

from reward_service.contract.results import Backend
from reward_service.contract.settings import ServedReward
from reward_service.engine.engine import Engine
from reward_service.engine.meter import Meter
from reward_service.http.app import build_http_app
from reward_service.http.limits import HttpLimits
from reward_service.http.standalone import http_server
from reward_service.http.token import NO_TOKEN, Token

TOKEN = Token("a-token-of-the-tests-0123456789")
SMALL = HttpLimits(
    body_bytes=1 << 20, held_bytes=4 << 20, image_pixels=1 << 16, images=8, seconds=5.0, body_seconds=1.0
)
HERE = ("127.0.0.1", 40_000)


@dataclass(frozen=True)
class Request:
    """One request. headers: as sent, besides Host and Content-Length."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the application answered. taken: pieces of the body that it received."""

    status: int
    headers: dict[str, str]
    body: bytes
    taken: int

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.json["error"]["code"])


async def call(
    app: FastAPI,
    request: Request,
    client: tuple[str, int] | None = HERE,
    host: str = "127.0.0.1:8000",
    pieces: Sequence[bytes] | None = None,
    silent: bool = False,
) -> Answer:
    """Send a request. pieces: the body as it arrives; silent: nothing comes after them, not even the end."""
    parts = [request.body] if pieces is None else list(pieces)
    sent: list[dict[str, Any]] = []
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        if taken >= len(parts):
            if silent:
                await asyncio.sleep(60.0)
            return {"type": "http.disconnect"}
        taken += 1
        more = taken < len(parts) or silent
        return {"type": "http.request", "body": parts[taken - 1], "more_body": more}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    with contextlib.suppress(KeyError):  # raised again after its answer, for the server's log
        await app(_scope(request, client, host), receive, send)  # type: ignore[arg-type]
    start = next(message for message in sent if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in sent)
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], headers, body, taken)


def _scope(request: Request, client: tuple[str, int] | None, host: str) -> dict[str, Any]:
    path, _, query = request.path.partition("?")
    headers = (("host", host), ("content-length", str(len(request.body))), *request.headers)
    latin = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": latin,
        "client": client,
        "server": ("127.0.0.1", 8000),
    }


def get(path: str, token: Token = NO_TOKEN) -> Request:
    """A GET."""
    return Request("GET", path, tuple(token.headers().items()), b"")


def post(content_type: str, body: bytes, token: Token = NO_TOKEN) -> Request:
    """A POST of a group."""
    headers = (("Content-Type", content_type), *token.headers().items())
    return Request("POST", "/v1/score", headers, body)


def _ended(reason: str) -> None:
    raise AssertionError(f"the engine would end the process: {reason}")


@asynccontextmanager
async def engine(scorer: str = "Redness", **settings: Any) -> AsyncIterator[Engine]:
    """An engine around a scorer of the tests."""
    served = ServedReward(scorer=f"tests.reward_service.scorers:{scorer}", **settings)
    started = await Engine.start("red", served, _ended, Meter())
    try:
        yield started
    finally:
        started.close()


@contextmanager
def served_engine(
    scorer: str, token: Token = NO_TOKEN, limits: HttpLimits = SMALL, **settings: Any
) -> Iterator[str]:
    """A server around an engine whose event loop runs in a thread of its own; yields its base URL."""
    started, stop, found = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with engine(scorer, **settings) as backend:
            with served(backend, token, limits) as url:
                found.append(url)
                started.set()
                await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(60.0)
        yield found[0]
    finally:
        stop.set()
        thread.join(30.0)


@contextmanager
def served(backend: Backend, token: Token = NO_TOKEN, limits: HttpLimits = SMALL) -> Iterator[str]:
    """An HTTP server in a thread of this process; yields its base URL."""
    server = http_server(build_http_app(backend, limits, token), limits)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),), daemon=True)
        thread.start()
        limit = time.monotonic() + 20.0
        while not server.started and time.monotonic() < limit:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20.0)


@contextmanager
def connected(address: str, count: int, begin: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that have sent `begin` and no more."""
    parts = urlsplit(address)
    with ExitStack() as ends:
        made = [
            ends.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=10.0))
            for _ in range(count)
        ]
        for one in made:
            one.sendall(begin)
        yield made
