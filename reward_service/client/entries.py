"""The rewards of a configuration, checked as far as that goes without Ray and without loading weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.config.services import RewardEntry, RewardSpec, UrlReward
from common.errors import RewardError
from reward_service.client.transport import FailedError, LostError, RefusedError
from reward_service.contract.registry import check_spec, naming
from reward_service.contract.results import Description, Reply
from reward_service.http.client import AsyncHttpReward, HttpReward, LostGroupError, Retrying, UnansweredError
from reward_service.http.token import Token, TokenSource

CHECK_LIMIT_S = 20.0
FIRST_WAIT_S = 0.25
PATIENT = Retrying(tries=1_000_000, first_wait_s=FIRST_WAIT_S, longest_wait_s=5.0)
"""Asks again until the deadline."""


def check_entries(entries: Mapping[str, RewardEntry]) -> None:
    """Check scorers, options, tokens and addresses. Raises RewardError naming the reward and its fault."""
    for name, entry in entries.items():
        with naming(name):
            if isinstance(entry, RewardSpec):
                check_spec(entry)
            elif isinstance(entry, UrlReward):
                ask_address(entry)
            # Whether an application runs is seen on the cluster only.


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
    token = token_of(entry)
    reward = HttpReward(entry.url, token, CHECK_LIMIT_S, retrying=PATIENT, insecure=entry.insecure)
    try:
        found = reward.describe()
    finally:
        reward.close()
    if not found.ready:
        raise RewardError(f"The reward at {entry.url} is not ready to score.")
    return found
