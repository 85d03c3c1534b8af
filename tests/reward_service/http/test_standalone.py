"""A server of one process: whom it listens to, and that it answers and ends cleanly."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from common.errors import RewardError
from common.trajectory import RewardScores
from reward_service.contract.settings import ServedReward
from reward_service.http.client import HttpReward
from reward_service.http.limits import HttpLimits
from reward_service.http.standalone import check_listening, run_server
from reward_service.http.token import NO_TOKEN
from tests.reward_service.http_calls import TOKEN

_SERVER = """
from reward_service.http.limits import HttpLimits
from reward_service.http.token import NO_TOKEN
from reward_service.contract.settings import ServedReward
from reward_service.http.standalone import run_server
run_server("jpeg", ServedReward(scorer="jpeg_compressibility"), "127.0.0.1", 0, NO_TOKEN, HttpLimits())
print("ended", flush=True)
"""
SERVED = ServedReward(scorer="tests.reward_service.scorers:Redness")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "rewards.example.org"])
def test_without_a_token_it_listens_to_this_machine_only(host: str) -> None:
    with pytest.raises(RewardError, match="token"):
        run_server("red", SERVED, host, 0, NO_TOKEN, HttpLimits())
    check_listening(host, TOKEN)


def test_a_shadow_is_refused_where_nothing_would_ask_it() -> None:
    shadowed = SERVED.model_copy(update={"shadow_app": "pickscore-b"})
    refused = pytest.raises(RewardError, match="shadow_app")
    with socket.create_server(("127.0.0.1", 0)) as taken, refused:
        run_server("red", shadowed, "127.0.0.1", taken.getsockname()[1], NO_TOKEN, HttpLimits())


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RewardError, match="Cannot listen"):
        run_server("red", SERVED, "127.0.0.1", taken.getsockname()[1], NO_TOKEN, HttpLimits())


def test_a_scorer_that_cannot_be_built_is_an_error() -> None:
    broken = ServedReward(scorer="tests.reward_service.scorers:Unbuildable")
    with pytest.raises(RewardError, match="no such model"):
        run_server("red", broken, "127.0.0.1", 0, NO_TOKEN, HttpLimits())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_scores_and_ends_cleanly_when_told(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        client = HttpReward(re.findall(r"http://127\.0\.0\.1:\d+", said)[0], deadline_s=60.0)
        outcome = client.score("a", np.zeros((2, 8, 8, 3), dtype=np.uint8)).outcome
        assert isinstance(outcome, RewardScores)
        client.close()
        process.send_signal(number)
        assert process.stdout.read() == "ended\n"
        assert process.wait(30.0) == 0
    finally:
        process.kill()
        process.wait(30.0)
