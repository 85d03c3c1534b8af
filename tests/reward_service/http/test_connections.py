"""Real sockets that send nothing, or a little at a time: they are closed, and good requests are answered."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from reward_service.contract.results import RewardScores
from reward_service.http.client import HttpReward, Retrying
from reward_service.http.connections import MOST_WAITING
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


def test_the_longest_waiting_of_too_many_are_closed_before_their_time(address: str) -> None:
    with connected(address, MOST_WAITING + 50, b"") as made:
        assert all(is_closed(one, 1.0) for one in made[:50])
        assert not is_closed(made[-1], 0.1)


@pytest.mark.parametrize("begin", UNFINISHED.values(), ids=UNFINISHED)
def test_a_request_that_drips_is_closed_when_its_time_is_over(address: str, begin: bytes) -> None:
    started = time.monotonic()
    with connected(address, 1, begin) as (one,):
        while not is_closed(one, 0.1):
            assert time.monotonic() - started < WAITING_S + 6.0
            one.sendall(b"x")
