"""A reward that is reached over HTTP: an actor speaks to it, so that images stay off the driver."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError

from common.cluster.process_failures import in_a_line
from common.config.services import RewardServiceSection, UrlReward
from common.errors import RewardError
from reward_service.client.entries import (
    CHECK_LIMIT_S,
    FIRST_WAIT_S,
    PATIENT,
    ask_once,
    http_reward,
    token_of,
)
from reward_service.client.transport import (
    FailedError,
    FinalError,
    ImagesRef,
    LostError,
    RequestError,
)
from reward_service.contract.results import Description, Reply
from reward_service.http.client import Retrying
from reward_service.http.token import Token

ASKED_AT_ONCE = 8
RESTARTS = 10
SPARE_S = 30.0
START_LIMIT_S = 120.0
BRIEFLY = Retrying(tries=4, first_wait_s=FIRST_WAIT_S)
"""Bridges a hiccup. During an outage the client asks again: it knows whether others are answered."""


class HttpAsker:
    """Asks one address, ASKED_AT_ONCE groups at a time at most. Runs as an asynchronous Ray actor.

    deadline_s: longest for one group.
    """

    def __init__(self, entry: UrlReward, token: Token, deadline_s: float) -> None:
        self._patient = http_reward(entry, token, CHECK_LIMIT_S, PATIENT)
        self._reward = http_reward(entry, token, deadline_s, BRIEFLY)

    async def describe(self) -> Description:
        """What answers there. Raises RewardError."""
        return await self._patient.describe()

    async def score(self, prompt: str, images: NDArray[np.uint8]) -> Reply | RequestError:
        """Score one group, or say what the transport has to raise. images: passed as an object reference."""
        try:
            return await ask_once(self._reward, prompt, images)
        except RequestError as error:
            return error


class HttpTransport:
    """Asks an address through an actor of its own, which keeps the deadline of a group; limit_s is longer."""

    def __init__(self, actor: ActorHandle, section: RewardServiceSection, described: Description) -> None:
        self._actor = actor
        self.window = ASKED_AT_ONCE
        self.limit_s = section.outage_s + SPARE_S
        self.stamp = described.stamp

    async def score(self, prompt: str, images: ImagesRef) -> Reply:
        """See RewardTransport."""
        reference: Any = self._actor.score.remote(prompt, images)
        try:
            reply: Reply | RequestError = await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except ObjectLostError as error:
            raise FinalError(f"Its images or its answer are lost: {in_a_line(error)}") from error
        except RayActorError as error:
            raise LostError("The process that asked died: killed, or out of memory.") from error
        except RayError as error:
            raise FailedError(f"The process that asks failed: {in_a_line(error)}") from error
        if isinstance(reply, RequestError):
            raise reply
        return reply

    async def absence(self) -> str | None:
        """See RewardTransport: its requests end by themselves, with the reason."""
        return None


def start_asker(entry: UrlReward, section: RewardServiceSection) -> ActorHandle:
    """Start the actor for an address, without waiting. Raises RewardError where its token is missing."""
    options = {
        "num_cpus": 0,
        "max_concurrency": ASKED_AT_ONCE,
        "max_restarts": RESTARTS,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}},
    }
    asker: Any = ray.remote(HttpAsker)
    actor: ActorHandle = asker.options(**options).remote(entry, token_of(entry), section.outage_s)
    return actor


def open_url(entry: UrlReward, actor: ActorHandle, section: RewardServiceSection) -> HttpTransport:
    """The transport through a started actor, once that has spoken to the address. Raises RewardError."""
    try:
        described = cast(Description, ray.get(actor.describe.remote(), timeout=START_LIMIT_S))
    except (RayError, GetTimeoutError) as error:
        raise RewardError(f"A process of the cluster cannot ask {entry.url}: {in_a_line(error)}") from error
    return HttpTransport(actor, section, described)
