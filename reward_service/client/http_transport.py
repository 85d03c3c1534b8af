"""A reward that is reached over HTTP: an actor speaks to it, so that pictures stay off the driver."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from common.config.services import RewardServiceSection, UrlReward
from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.client.entries import CHECK_LIMIT_S, FIRST_WAIT_S, http_reward, token_of, until
from reward_service.client.transport import FailedError, LineError, LostError, RefusedError, Request, Sending
from reward_service.contract.results import Description, Reply
from reward_service.http.client import HttpReward, LostGroupError, Retrying, UnansweredError
from reward_service.http.token import Token

ASKED_AT_ONCE = 8
RESTARTS = 10
SPARE_S = 30.0
START_LIMIT_S = 120.0
READ_LIMIT_S = 60.0
BRIEFLY = Retrying(tries=4, first_wait_s=FIRST_WAIT_S)
"""Bridges a hiccup. During an outage the channel asks again: it knows whether others are answered."""


class HttpAsker:
    """Asks one address, ASKED_AT_ONCE groups at a time at most, each over a connection of its own.

    Runs as a Ray actor of so many threads. deadline_s: longest for one group.
    """

    def __init__(self, entry: UrlReward, token: Token, deadline_s: float) -> None:
        self._entry = entry
        self._token = token
        self._free: SimpleQueue[HttpReward] = SimpleQueue()
        for _ in range(ASKED_AT_ONCE):
            self._free.put(http_reward(entry, token, deadline_s, BRIEFLY))

    def describe(self) -> Description:
        """What answers there. Raises RewardError."""
        return http_reward(self._entry, self._token, CHECK_LIMIT_S, until(CHECK_LIMIT_S)).describe()

    def score(self, prompt: str, images: NDArray[np.uint8]) -> Reply | LineError:
        """Score one group, or say what the line has to raise. images is passed as an object reference."""
        # There are as many as threads, so nobody waits here.
        reward = self._free.get()
        try:
            return reward.score(prompt, images)
        except UnansweredError as error:
            return RefusedError(str(error), wait_s=0.0)
        except LostGroupError as error:
            return LostError(str(error))
        except RewardError as error:
            return FailedError(str(error))
        finally:
            self._free.put(reward)


class _UrlSending:
    """A request that the actor has taken."""

    def __init__(self, reference: ray.ObjectRef) -> None:
        self._reference = reference

    def taken(self, wait_s: float) -> list[ray.ObjectRef]:
        """See Sending."""
        return [self._reference]

    def cancel(self) -> None:
        """See Sending."""
        ray.cancel(self._reference)


class UrlLine:
    """The way to an address, through an actor of its own, which keeps the deadline; limit_s is longer."""

    def __init__(
        self, entry: UrlReward, actor: ActorHandle, section: RewardServiceSection, stamp: ScorerStamp
    ) -> None:
        self._entry = entry
        self._actor = actor
        self._outage_s = section.outage_s
        self._stamp = stamp

    @property
    def window(self) -> int:
        """See Line."""
        return ASKED_AT_ONCE

    @property
    def limit_s(self) -> float:
        """See Line."""
        return self._outage_s + SPARE_S

    @property
    def answers_as(self) -> ScorerStamp:
        """See Line."""
        return self._stamp

    def send(self, request: Request) -> Sending:
        """See Line."""
        return _UrlSending(self._actor.score.remote(request.prompt, request.images))

    def read(self, reference: ray.ObjectRef, held_s: float) -> Reply:
        """See Line."""
        try:
            reply: Reply | LineError = ray.get(reference, timeout=READ_LIMIT_S)
        except RayActorError as error:
            raise LostError("The process that asked died: killed, or out of memory.") from error
        except (RayTaskError, RayError, GetTimeoutError) as error:
            raise FailedError(f"The process that asks failed: {type(error).__name__}: {error}") from error
        if isinstance(reply, LineError):
            raise reply
        return reply

    def state(self) -> str:
        """See Line."""
        return f"It is asked at {self._entry.url}."


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


def open_url(entry: UrlReward, actor: ActorHandle, section: RewardServiceSection) -> UrlLine:
    """The line through a started actor, once that has spoken to the address. Raises RewardError."""
    try:
        described = cast(Description, ray.get(actor.describe.remote(), timeout=START_LIMIT_S))
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, RewardError) else error
        raise RewardError(f"A process of the cluster cannot ask it: {cause}") from error
    except (RayError, GetTimeoutError) as error:
        raise RewardError(f"The process that asks {entry.url} did not start: {error}") from error
    return UrlLine(entry, actor, section, described.stamp)
