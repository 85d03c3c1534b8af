"""A thousand hostile requests against a reward server: no crash, no score for them, and it still scores."""

from __future__ import annotations

import argparse
import collections
import random
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests

from benchmarks.hostile_requests import Request, Target, one_request
from benchmarks.hostile_rules import broken_rules
from benchmarks.hostile_server import LIMITS, SCORER, server_process
from benchmarks.machine import Machine
from benchmarks.report import RESULTS, Result, Verdict
from common.errors import PrdpError, RewardError
from reward_service.contract.results import RewardScores
from reward_service.http.client import HttpReward
from reward_service.http.token import Token

ABOUT = "Fire hostile requests of all kinds at a server of one process with a token, and count its answers."
CLIENTS = 8
RAW_SHARE = 0.05
ANSWER_LIMIT_S = 60.0
CLOSED = 0
MOST_MIB = 256
_MOST_BYTES = 1 << 20

RAW: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "no method": b" / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "endless header": b"GET /v1/ready HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000,
    "two lengths": b"GET /v1/ready HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "negative length": b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "huge length": b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\nabc",
    "length and chunks": (
        b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n"
    ),
    "bad chunks": b"POST /v1/score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "web socket": (
        b"GET /v1/score HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
    "body that never ends": b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc",
    "null bytes": bytes(1000),
}
"""What is sent without an HTTP library, by what is wrong with it."""


@dataclass(frozen=True)
class Answer:
    """status: CLOSED where the server closed the connection without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Fired:
    """One request and what came of it."""

    kind: str
    status: int
    seconds: float
    problems: list[str]


class Attacker:
    """Sends requests, from several threads, to a server's address."""

    def __init__(self, address: str, target: Target) -> None:
        parts = urlsplit(address)
        self._peer = (parts.hostname or "", parts.port or 0)
        self._target = target

    def fire(self, seed: int) -> Fired:
        """The hostile request of a seed."""
        rng = random.Random(seed)
        if rng.random() < RAW_SHARE:
            kind = rng.choice(sorted(RAW))
            request = Request(kind, "RAW", "", (), b"", may_score=False, authorized=False)
            payload = self._maybe_with_token(rng, RAW[kind])
        else:
            request = one_request(seed, self._target)
            payload = _payload(request)
        started = time.monotonic()
        answer = self._send(payload, request.method)
        seconds = time.monotonic() - started
        return Fired(request.kind, answer.status, seconds, self._judge(request, answer))

    def _maybe_with_token(self, rng: random.Random, payload: bytes) -> bytes:
        """Raw bytes with the right token in their head, half of the time."""
        line = f"Host: a\r\nAuthorization: Bearer {self._target.token}\r\n".encode()
        return payload.replace(b"Host: a\r\n", line) if rng.random() < 0.5 else payload

    def _judge(self, request: Request, answer: Answer) -> list[str]:
        if request.method == "RAW":
            allowed = answer.status == CLOSED or 400 <= answer.status < 500
            return [] if allowed else [f"{request.kind}: {answer.status}"]
        if answer.status == CLOSED:
            return [f"{request.kind}: closed without an answer"]
        return broken_rules(request, answer, self._target)

    def _send(self, payload: bytes, method: str) -> Answer:
        with socket.create_connection(self._peer, timeout=ANSWER_LIMIT_S) as connection:
            try:
                connection.sendall(payload)
                response = HTTPResponse(connection, method=method)
                response.begin()
                headers = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, headers, response.read(_MOST_BYTES))
            except (ConnectionError, HTTPException):
                return Answer(CLOSED, {}, b"")


def fire_all(attacker: Attacker, seeds: Sequence[int]) -> list[Fired]:
    """All of them, from CLIENTS threads."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(attacker.fire, seeds))


def sound_score(address: str, token: Token) -> RewardScores:
    """The score of one sound group. Raises RewardError."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    client = HttpReward(address, token, deadline_s=ANSWER_LIMIT_S)
    outcome = client.score("a red apple", pixels).outcome
    client.close()
    if not isinstance(outcome, RewardScores):
        raise RewardError(f"A sound group was not scored: {outcome.reason}")
    return outcome


def attack(count: int, seed: int, command: str) -> Result:
    """Start a server, fire, and judge."""
    machine = Machine.here()
    token = Token(secrets.token_urlsafe(32))
    with server_process(token) as (process, address):
        schema: Any = requests.get(f"{address}/openapi.json", headers=token.headers(), timeout=60).json()
        before = sound_score(address, token)
        memory = _memory_bytes(process.pid, "VmRSS")
        target = Target(token.value, schema, LIMITS.body_bytes)
        fired = fire_all(Attacker(address, target), range(seed * count, seed * count + count))
        after = sound_score(address, token)
        grown = (_memory_bytes(process.pid, "VmRSS") - memory) / 2**20
        most = (_memory_bytes(process.pid, "VmHWM") - memory) / 2**20
        same = process.poll() is None and bool((before.rewards == after.rewards).all())
    return Result(
        name="hostile",
        command=command,
        settings={"requests": count, "seed": seed, "clients": CLIENTS, "scorer": SCORER},
        machine=machine,
        verdicts=(
            *_verdicts(fired, same and before.stamp == after.stamp, process.returncode),
            _memory_verdict(most),
        ),
        figures=_figures(fired, grown),
        raw={"answers by kind": _by_kind(fired), "slowest_s": max(one.seconds for one in fired)},
        notes=(
            "A connection that is closed without an answer is counted as 'closed'; only bytes that are no "
            "HTTP request may end so. A score (200) is allowed for sound groups with the right token, and "
            "for changed ones that can still be read.",
        ),
    )


def _verdicts(fired: Sequence[Fired], same: bool, ended: int) -> tuple[Verdict, ...]:
    problems = [problem for one in fired for problem in one.problems]
    shown = "; ".join(problems[:5]) or "no crash, no 5xx but 503 and 504, no answer without the token"
    alive = "the same process gave the same score of the same stamp" if same else "it did not"
    return (
        Verdict("requests whose answer breaks a rule", str(len(problems)), "0", not problems, shown),
        Verdict("scores right after, in the same process", "yes" if same else "no", "yes", same, alive),
        Verdict("exit status after SIGTERM", str(ended), "0", ended == 0, "of the server's process"),
    )


def _memory_verdict(most: float) -> Verdict:
    about = f"{CLIENTS} requests at a time, which may hold {LIMITS.held_bytes >> 20} MiB by the limits"
    return Verdict(
        "most memory of the server, beyond before",
        f"{most:.0f} MiB",
        f"{MOST_MIB} MiB",
        most <= MOST_MIB,
        about,
    )


def _figures(fired: Sequence[Fired], grown: float) -> Mapping[str, str]:
    counts = collections.Counter(one.status for one in fired)
    names = {CLOSED: "closed", 200: "200 (scores, and reads with the token)"}
    rows = {f"answers {names.get(status, status)}": str(counts[status]) for status in sorted(counts)}
    slowest = max(fired, key=lambda one: one.seconds)
    rows["kinds of requests"] = str(len({one.kind for one in fired}))
    rows["slowest answer"] = f"{slowest.seconds:.2f} s ({slowest.kind})"
    rows["memory of the server after, beyond before"] = f"{grown:.0f} MiB"
    return rows


def _by_kind(fired: Sequence[Fired]) -> dict[str, dict[str, int]]:
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for one in fired:
        kinds[one.kind][str(one.status)] += 1
    return {kind: dict(kinds[kind]) for kind in sorted(kinds)}


def _payload(request: Request) -> bytes:
    lines = [f"{request.method} {request.path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    lines += [f"Content-Length: {len(request.body)}", "", ""]
    return "\r\n".join(lines).encode("utf-8") + request.body


def _memory_bytes(pid: int, which: str) -> int:
    """VmRSS: resident now; VmHWM: the most that was."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


def main(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status: 0 every rule kept, 1 not, 2 a text explains why not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=ABOUT)
    parser.add_argument("--requests", type=int, default=1000, help="at least 1 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    try:
        command = " ".join(["python -m benchmarks.hostile", *arguments])
        result = attack(given.requests, given.seed, command)
        result.publish(given.out)
    except PrdpError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0 if all(verdict.met for verdict in result.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
