"""Real sockets that send nothing, or a little at a time: they are closed, and good requests are answered."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from common.trajectory import RewardScores
from reward_service.http.client import HttpReward, Retrying
from reward_service.http.connections import BACKLOG, Waiting, most_waiting
from tests.reward_service.http_calls import SMALL, TOKEN, connected, served_engine

EACH = 150
WAITING_S = 1.0
LIMITS = SMALL.model_copy(update={"head_seconds": WAITING_S, "body_seconds": 0.5})
PIXELS = np.zeros((1, 8, 8, 3), dtype=np.uint8)
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BEARER = f"Authorization: Bearer {TOKEN.get_secret_value()}\r\n".encode()
UNFINISHED = {
    "nothing": b"",
    "half a head": HEAD,
    "a head without a token": HEAD + b"Content-Length: 9\r\n\r\n",
    "a head and half a body": HEAD + BEARER + b"Content-Length: 9\r\n\r\n{",
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))  # both ends are in this process
    with served_engine("Redness", TOKEN, LIMITS) as url:
        yield url
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_closed(one: socket.socket, within_s: float) -> bool:
    """Whether the server ends the connection in that time, whatever it says before."""
    one.settimeout(within_s)
    try:
        while one.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def test_connections_without_a_request_turn_no_good_one_away(address: str) -> None:
    with ExitStack() as crowd:
        for begin in UNFINISHED.values():
            crowd.enter_context(connected(address, EACH, begin))
        client = HttpReward(address, TOKEN, deadline_s=10.0, retrying=Retrying(tries=1))
        outcomes = [client.score("a", PIXELS).outcome for _ in range(20)]
        client.close()
    assert all(isinstance(outcome, RewardScores) for outcome in outcomes)


class Closed:
    """A transport that remembers whether it was closed."""

    closed = False

    def abort(self) -> None:
        self.closed = True


def test_the_longest_waiting_of_too_many_is_closed_before_its_time() -> None:
    async def crowd() -> None:
        waiting, made = Waiting(60.0, most=2), [Closed() for _ in range(4)]
        waiting.begin(made[0])
        waiting.begin(made[1])
        waiting.begin(made[0])  # answered once: it waits anew
        waiting.begin(made[2])
        waiting.end(made[2])
        waiting.begin(made[3])
        assert [one.closed for one in made] == [False, True, False, False]

    asyncio.run(crowd())


def test_as_many_may_wait_as_connect_in_two_turns_of_the_loop() -> None:
    assert most_waiting() >= 3 * BACKLOG


@pytest.mark.parametrize("begin", UNFINISHED.values(), ids=UNFINISHED)
def test_a_request_that_drips_is_closed_when_its_time_is_over(address: str, begin: bytes) -> None:
    started = time.monotonic()
    with connected(address, 1, begin) as (one,):
        while not is_closed(one, 0.1):
            assert time.monotonic() - started < WAITING_S + 6.0
            one.sendall(b"x")
