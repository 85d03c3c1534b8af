"""A real HTTP server that answers by a script: busy, late, lying, gone."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from common.trajectory import RewardScores, ScorerStamp
from reward_service.http.replies import encode_reply
from reward_service.http.wire import JSON_TYPE

PART = RewardScores(
    np.arange(3.0), np.subtract.outer(np.arange(3.0), np.arange(3.0)), 0.0, ScorerStamp("a", "1", "")
)
SCORE = encode_reply(PART, 0.5)
HttpAnswer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


@dataclass(frozen=True)
class Say:
    """One scripted answer. wait_s: before it; drop: close the connection instead."""

    status: int = 200
    body: bytes = SCORE
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    drop: bool = False


def error(status: int, reason: str = "because", retry_after_s: float | None = None, code: str = "c") -> Say:
    """An error of the protocol."""
    body = json.dumps({"error": {"code": code, "reason": reason, "retry_after_s": retry_after_s}}).encode()
    return Say(status, body, "application/json")


class Script:
    """Answers in turn; the last one again and again. seen: Authorization headers, one a request."""

    def __init__(self, *says: Say) -> None:
        self._says = list(says)
        self.seen: list[str | None] = []

    def next(self, authorization: str | None) -> Say:
        """The next answer."""
        self.seen.append(authorization)
        return self._says.pop(0) if len(self._says) > 1 else self._says[0]


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """A real HTTP server that answers by a script; yields its base URL."""

    def answer(path: str, headers: dict[str, str], body: bytes) -> HttpAnswer | None:
        say = script.next(headers.get("authorization"))
        time.sleep(say.wait_s)
        return None if say.drop else (say.status, {"Content-Type": say.content_type, **say.headers}, say.body)

    with http_server(answer) as url:
        yield f"{url}/app"


@contextmanager
def http_server(answer: Callable[[str, dict[str, str], bytes], HttpAnswer | None]) -> Iterator[str]:
    """A real HTTP server. answer: of a path, headers by lower-case names and a body; None: hang up."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            said = answer(self.path, {name.lower(): text for name, text in self.headers.items()}, body)
            if said is None:
                self.close_connection = True
                return
            with contextlib.suppress(ConnectionError):  # a client that went away at its deadline
                self.send_response(said[0])
                for name, value in said[1].items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(said[2])))
                self.end_headers()
                self.wfile.write(said[2])

        do_GET = do_POST  # noqa: N815 - named by the standard library

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
