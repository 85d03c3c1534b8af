"""The rewards of a configuration, checked as far as that goes without Ray and without loading weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from common.config.services import AppReward, RewardEntry, RewardSpec, UrlReward
from common.errors import RewardError
from reward_service.client.transport import FailedError, LostError, RefusedError
from reward_service.contract.registry import check_spec
from reward_service.contract.results import Description, Reply
from reward_service.http.client import AsyncHttpReward, LostGroupError, Retrying, UnansweredError
from reward_service.http.token import Token, TokenSource

CHECK_LIMIT_S = 20.0
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 5.0


def check_entries(entries: Mapping[str, RewardEntry]) -> None:
    """Check scorers, options, tokens and addresses. Raises RewardError naming the reward and its fault."""
    for name, entry in entries.items():
        try:
            _CHECKS[type(entry)](entry)
        except RewardError as error:
            raise RewardError(f"Reward {name!r}: {error}") from error


def until(deadline_s: float) -> Retrying:
    """Ask again until the deadline, after LONGEST_WAIT_S at most."""
    # A wait is at least half of its length, so this many tries outlast the deadline.
    return Retrying(8 + int(2.0 * deadline_s / LONGEST_WAIT_S), FIRST_WAIT_S, LONGEST_WAIT_S)


def http_reward(entry: UrlReward, token: Token, deadline_s: float, retrying: Retrying) -> AsyncHttpReward:
    """The client of an address. deadline_s: longest for one group, all tries included."""
    return AsyncHttpReward(entry.url, token, deadline_s, retrying=retrying, insecure=entry.insecure)


async def ask_once(reward: AsyncHttpReward, prompt: str, images: NDArray[np.uint8]) -> Reply:
    """What an address says about one group, uint8 (B, height, width, 3). Raises RequestError."""
    try:
        return await reward.score(prompt, images)
    except UnansweredError as error:
        raise RefusedError(str(error)) from error
    except LostGroupError as error:
        raise LostError(str(error)) from error
    except RewardError as error:
        raise FailedError(str(error)) from error


def token_of(entry: UrlReward) -> Token:
    """The token in the variable that the entry names. Raises RewardError where it is unset or malformed."""
    return TokenSource(env=entry.token_env).read()


def ask_address(entry: UrlReward) -> Description:
    """What answers at an address. Raises RewardError where nothing does, it refuses, or it is no reward."""
    found = asyncio.run(_describe(entry))
    if not found.ready:
        raise RewardError(f"The reward at {entry.url} is not ready to score.")
    return found


async def _describe(entry: UrlReward) -> Description:
    reward = http_reward(entry, token_of(entry), CHECK_LIMIT_S, until(CHECK_LIMIT_S))
    try:
        return await reward.describe()
    finally:
        await reward.aclose()


def _nothing_to_check(entry: AppReward) -> None:
    """Whether an application runs is seen on the cluster only."""


_CHECKS: dict[type, Callable[..., object]] = {
    RewardSpec: check_spec,
    AppReward: _nothing_to_check,
    UrlReward: ask_address,
}
