"""Asking a reward for many groups: by handle as a driver does, and over HTTP from several threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import ray
from numpy.typing import NDArray

from benchmarks.reward_cluster import ROOT
from common.config.services import RewardEntry, RewardServiceSection
from common.errors import RewardError, StuckError
from common.trajectory import RewardScores
from reward_service.client.reward_sum import RewardSum
from reward_service.client.start import start_rewards
from reward_service.contract.results import RewardFailure
from reward_service.http.client import HttpReward
from reward_service.http.wire import Wire

ANSWER_LIMIT_S = 300.0
STOP_LIMIT_S = 60.0

Groups = Sequence[tuple[str, NDArray[np.uint8]]]


def noise_images(prompt: str, count: int, side: int) -> NDArray[np.uint8]:
    """uint8 (count, side, side, 3): noise that depends on the prompt only."""
    generator = np.random.default_rng(list(prompt.encode()))
    return generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def open_reward(name: str, entry: RewardEntry) -> RewardSum:
    """A client of one reward that runs already, with the settings that a run has by default."""
    section = RewardServiceSection()
    return start_rewards({name: entry}, {}, section, "benchmark", owner="benchmark", stop_serve=False)


def score_by_handle(reward: RewardSum, groups: Groups) -> None:
    """Score all groups, with as many out as a run allows; images are put into the object store on the way.

    Raises RewardError where one has no score, StuckError where none comes.
    """

    async def score_all() -> None:
        waiting = iter(groups)

        async def worker() -> None:
            for prompt, images in waiting:
                asked = reward.score(prompt, ray.put(images), len(images))
                answer = await asyncio.wait_for(asked, ANSWER_LIMIT_S)
                if isinstance(answer, RewardFailure):
                    raise RewardError(answer.reason)

        await asyncio.gather(*(worker() for _ in range(RewardServiceSection().queue_groups)))

    try:
        asyncio.run(score_all())
    except TimeoutError as error:
        raise StuckError(f"No answer for {ANSWER_LIMIT_S:g} s.") from error


def score_by_http(url: str, wire: Wire, clients: int, groups: Groups) -> None:
    """Score all groups from so many threads with a connection each. Raises RewardError."""
    waiting = iter(list(groups))

    def ask_in_turn(_: int) -> None:
        reward = HttpReward(url, wire=wire)
        try:
            for prompt, images in waiting:
                outcome = reward.score(prompt, images).outcome
                if not isinstance(outcome, RewardScores):
                    raise RewardError(outcome.reason)
        finally:
            reward.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask_in_turn, range(clients)))


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
        process.wait(STOP_LIMIT_S)
