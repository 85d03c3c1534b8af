"""Asking a reward as a driver does: pictures by object reference, through a RewardSum."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from common.config.services import RewardEntry, RewardServiceSection
from common.errors import RewardError, StuckError
from common.trajectory import GroupScore
from reward_service.client.reward_sum import RewardSum
from reward_service.client.start import start_rewards
from reward_service.contract.results import RewardFailure

ANSWER_LIMIT_S = 300.0


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
    return start_rewards({name: entry}, {}, section, "benchmark", owner="benchmark", stop_serve=False)


def score_by_handle(
    mix: RewardSum, groups: Sequence[tuple[str, NDArray[np.uint8]]], each: Callable[[], None]
) -> None:
    """Score all groups, with as many out as the channel takes; `each` is called after every one.

    Raises RewardError where one has no score, StuckError where none comes.
    """

    async def score(prompt: str, pixels: NDArray[np.uint8]) -> None:
        answer = await _ask(mix, prompt, pixels)
        if isinstance(answer, RewardFailure):
            raise RewardError(answer.reason)
        each()

    async def score_all() -> None:
        waiting = iter(groups)

        async def worker() -> None:
            for prompt, pixels in waiting:
                await score(prompt, pixels)

        await asyncio.gather(*(worker() for _ in range(RewardServiceSection().queue_groups)))

    asyncio.run(score_all())


async def _ask(mix: RewardSum, prompt: str, pixels: NDArray[np.uint8]) -> GroupScore | RewardFailure:
    """Raises StuckError where no answer comes."""
    try:
        asked = mix.score(prompt, in_store(prompt, pixels), len(pixels))
        return await asyncio.wait_for(asked, ANSWER_LIMIT_S)
    except TimeoutError as error:
        raise StuckError(f"No answer for {ANSWER_LIMIT_S:g} s.") from error
