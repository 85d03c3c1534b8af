"""The server that benchmarks.hostile attacks: one process with a token and small limits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import RewardError
from reward_service.contract.settings import ServedReward
from reward_service.http.limits import HttpLimits
from reward_service.http.standalone import run_server
from reward_service.http.token import Token

SCORER = "jpeg_incompressibility"
LIMITS = HttpLimits(body_bytes=4 << 20, held_bytes=64 << 20, image_pixels=1 << 20, body_seconds=2.0)
_TOKEN_ENV = "HOSTILE_TOKEN"
_STOP_LIMIT_S = 60.0


@contextmanager
def server_process(token: Token) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own process; yields it and its address. Raises RewardError where it does not start."""
    command = [sys.executable, "-m", "benchmarks.hostile_server"]
    environment = {**os.environ, _TOKEN_ENV: token.value, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    try:
        words = (process.stdout.readline() if process.stdout else "").split()
        addresses = [word for word in words if word.startswith("http://")]
        if not addresses:
            raise RewardError(f"The server did not start; it said {' '.join(words)!r}.")
        yield process, addresses[0]
    finally:
        process.terminate()
        process.wait(_STOP_LIMIT_S)


if __name__ == "__main__":
    run_server("hostile", ServedReward(scorer=SCORER), "127.0.0.1", 0, Token.from_env(_TOKEN_ENV), LIMITS)
