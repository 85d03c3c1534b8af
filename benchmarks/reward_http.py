"""Asking a reward over HTTP from several threads, and a server of one process as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from benchmarks.reward_cluster import ROOT
from common.errors import RewardError
from reward_service.contract.results import RewardScores
from reward_service.http.client import HttpReward
from reward_service.http.wire import Wire

_STOP_LIMIT_S = 60.0


class HttpClients:
    """Threads with a connection each that share out groups among themselves."""

    def __init__(self, url: str, wire: Wire, clients: int) -> None:
        self._url = url
        self._wire = wire
        self._clients = clients

    def score(self, groups: Sequence[tuple[str, NDArray[np.uint8]]], each: Callable[[], None]) -> None:
        """Score all groups; `each` is called after every one. Raises RewardError where one has no score."""
        free: SimpleQueue[HttpReward] = SimpleQueue()
        for _ in range(self._clients):
            free.put(HttpReward(self._url, wire=self._wire))

        def ask(group: tuple[str, NDArray[np.uint8]]) -> None:
            reward = free.get()
            try:
                outcome = reward.score(*group).outcome
            finally:
                free.put(reward)
            if not isinstance(outcome, RewardScores):
                raise RewardError(outcome.reason)
            each()

        with ThreadPoolExecutor(self._clients) as pool:
            for _ in pool.map(ask, groups):
                pass
        while not free.empty():
            free.get().close()


@contextmanager
def standalone(options: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """`python -m reward_service serve clip` in a process of its own; yields its number and address.

    Raises RewardError where it does not start.
    """
    command = [sys.executable, "-m", "reward_service", "serve", "clip", "--port", "0"]
    for flag, given in (("--option", options), ("--set", settings)):
        command += [word for key, value in given.items() for word in (flag, f"{key}={value}")]
    environment = {**os.environ, "OMP_NUM_THREADS": settings.get("threads", "1")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)
    try:
        words = (process.stdout.readline() if process.stdout else "").split()
        addresses = [word for word in words if word.startswith("http://")]
        if not addresses:
            raise RewardError(f"The server did not start; it said {' '.join(words)!r}.")
        yield process.pid, addresses[0]
    finally:
        process.terminate()
        process.wait(_STOP_LIMIT_S)
