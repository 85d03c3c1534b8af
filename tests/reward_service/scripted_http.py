"""A real HTTP server that answers by a script: busy, late, lying, gone."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from common.trajectory import ScorerStamp
from reward_service.contract.results import NoShadow, RewardScores
from reward_service.http.replies import encode_reply
from reward_service.http.wire import JSON_TYPE

PART = RewardScores(
    np.arange(3.0), np.subtract.outer(np.arange(3.0), np.arange(3.0)), 0.0, ScorerStamp("a", "1", "")
)
SCORE = encode_reply(PART, 0.5, NoShadow())


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

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def _answer(self) -> None:
            say = script.next(self.headers.get("Authorization"))
            time.sleep(say.wait_s)
            if say.drop:
                self.close_connection = True
                return
            self.send_response(say.status)
            for name, value in {"Content-Type": say.content_type, **say.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(say.body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a client that went away at its deadline
                self.wfile.write(say.body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/app"
    finally:
        server.shutdown()
        server.server_close()
