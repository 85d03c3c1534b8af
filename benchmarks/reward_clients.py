"""Clients that ask rewards as a driver does: pictures by object reference, through a RewardSum each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray

from common.config.services import RewardEntry, RewardServiceSection
from common.errors import RewardError, StuckError
from common.trajectory import GroupScore
from reward_service.client.reward_sum import RewardSum
from reward_service.client.start import start_mix
from reward_service.contract.results import RewardFailure

ANSWER_LIMIT_S = 300.0


@dataclass(frozen=True)
class Asked:
    """One group and its answer. sent_at, answered_at: monotonic seconds."""

    client: int
    prompt: str
    sent_at: float
    answered_at: float
    answer: GroupScore | RewardFailure

    @property
    def wait_s(self) -> float:
        """Seconds from the asking to the answer, retries included."""
        return self.answered_at - self.sent_at


def pictures(prompt: str, count: int, side: int) -> NDArray[np.uint8]:
    """uint8 (count, side, side, 3): noise that depends on the prompt only."""
    generator = np.random.default_rng(list(prompt.encode()))
    return generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def in_store(prompt: str, pixels: NDArray[np.uint8]) -> ray.ObjectRef:
    """A reference of the pictures, as an actor hands them out."""
    return ray.put(pixels)


def open_mix(name: str, entry: RewardEntry) -> RewardSum:
    """A client of one reward that runs already, with the settings that a run has by default."""
    section = RewardServiceSection()
    return start_mix({name: entry}, {}, section, run_name="benchmark", owner="benchmark", stop_serve=False)


def score_by_handle(
    mix: RewardSum, groups: Sequence[tuple[str, NDArray[np.uint8]]], each: Callable[[], None]
) -> None:
    """Score all groups, with as many out as the channel takes; `each` is called after every one.

    Raises RewardError where one has no score, StuckError where none comes.
    """
    waiting = list(reversed(groups))
    while waiting or mix.outstanding:
        while waiting and mix.room:
            prompt, pixels = waiting.pop()
            mix.submit(prompt, in_store(prompt, pixels), len(pixels))
        answers = mix.wait(ANSWER_LIMIT_S)
        if not answers:
            raise StuckError(f"No answer for {ANSWER_LIMIT_S:g} s.")
        for _, answer in answers:
            if isinstance(answer, RewardFailure):
                raise RewardError(answer.reason)
            each()


class Clients:
    """Threads, each with a RewardSum of its own, that ask for one group after the other.

    pixels: by prompt; a client goes through those in order. pause_s: between an answer and the next question.
    Leaving the context lets each client get its last answer, and raises what ended a client early.
    """

    def __init__(
        self,
        mixes: list[RewardSum],
        pixels: Mapping[str, NDArray[np.uint8]],
        pause_s: float,
    ) -> None:
        self._mixes = mixes
        self._pixels = dict(pixels)
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(len(mixes), thread_name_prefix="client")
        self._clients: list[Future[None]] = []
        self._asked: list[Asked] = []

    def __enter__(self) -> Clients:
        self._clients = [self._pool.submit(self._ask, row) for row in range(len(self._mixes))]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)
        for client in self._clients:
            client.result()

    def check(self) -> None:
        """Raise what ended a client early."""
        for client in self._clients:
            if client.done():
                client.result()

    def asked(self) -> list[Asked]:
        """Answered groups up to now, in the order of their answers."""
        return list(self._asked)

    def retries(self) -> int:
        """Groups that a client had to send again after a failure."""
        return sum(mix.counters().retries for mix in self._mixes)

    def busy_s(self) -> float:
        """Seconds that scorers worked for the clients."""
        return sum(mix.counters().busy_s for mix in self._mixes)

    def _ask(self, row: int) -> None:
        mix, prompts = self._mixes[row], self._prompts(row)
        # So that clients with a pause do not all ask in the same moment.
        self._stop.wait(self._pause_s * row / len(self._mixes))
        while not self._stop.is_set():
            prompt = next(prompts)
            sent_at = time.monotonic()
            pixels = self._pixels[prompt]
            mix.submit(prompt, in_store(prompt, pixels), len(pixels))
            answers = mix.wait(ANSWER_LIMIT_S)
            if not answers:
                raise StuckError(f"Client {row} has had no answer for {ANSWER_LIMIT_S:g} s.")
            ((_, answer),) = answers
            self._asked.append(Asked(row, prompt, sent_at, time.monotonic(), answer))
            self._stop.wait(self._pause_s)

    def _prompts(self, row: int) -> Iterator[str]:
        prompts = list(self._pixels)
        while True:
            yield prompts[row % len(prompts)]
            row += len(self._mixes) + 1
