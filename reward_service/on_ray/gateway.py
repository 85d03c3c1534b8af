"""The Serve edge of HTTP: an ingress that passes checked groups on to the replicas of its own application."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from common.errors import RewardError
from reward_service.contract.results import BusyError, Description, Reply
from reward_service.http.app import build_http_app
from reward_service.http.errors import LOST, Refusal
from reward_service.http.limits import HttpLimits
from reward_service.http.token import TokenSource
from reward_service.on_ray.handles import QUIET

GATEWAY = "Gateway"
"""The deployment that answers HTTP."""

_RETRY_S = 1.0
_ONGOING_REQUESTS = 256
_QUEUED_REQUESTS = 256


def build_gateway(replicas: serve.Application, limits: HttpLimits, token: TokenSource) -> serve.Application:
    """The application with HTTP in front of it: answers below its route_prefix, e.g. /pickscore/v1/score.

    replicas: the bound reward deployment, with the methods score, describe and probe. token: where the
    gateway's process finds the token when it starts; the token itself never travels. Without one, only
    what the gateway's machine sends is answered.
    """
    deployment = serve.deployment(
        name=GATEWAY,
        num_replicas=1,
        max_surge_percent=100,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_ONGOING_REQUESTS,
        max_queued_requests=_QUEUED_REQUESTS,
        logging_config=QUIET,
    )(serve.ingress()(HttpGateway))
    return deployment.bind(replicas, limits, token)


class HttpGateway:
    """What Serve runs: builds the HTTP application where its process starts, and reads the token there."""

    def __init__(self, replicas: DeploymentHandle, limits: HttpLimits, token: TokenSource) -> None:
        self._backend = ReplicaBackend(replicas)
        self._limits = limits
        self._token = token

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's call for the application. Raises RewardError where the token cannot be read."""
        return build_http_app(self._backend, self._limits, self._token.read())


class _DiedError(RewardError):
    """A replica died after it had taken a request."""


class ReplicaBackend:
    """The replicas behind a handle, as the Backend of an HTTP front."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas

    async def score(self, prompt: str, images: NDArray[np.uint8]) -> Reply:
        """Score one group.

        Raises BusyError where queues are full, RewardError where no replica answers, and the Refusal LOST
        where the replica that had taken the group died: the group may be what killed it.
        """
        try:
            reply: Reply = await _answer(self._replicas.score.remote(prompt, images))
        except _DiedError as error:
            raise Refusal(LOST, str(error), _RETRY_S) from error
        return reply

    async def describe(self) -> Description:
        """Which reward this is, by one of the replicas. Raises BusyError or RewardError."""
        description: Description = await _answer(self._replicas.describe.remote())
        return description

    async def probe(self) -> float:
        """Does one of the replicas work, and how many seconds ago did it? Raises BusyError or RewardError."""
        worked_s_ago: float = await _answer(self._replicas.probe.remote())
        return worked_s_ago


async def _answer(response: Any) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except BackPressureError as error:
        raise BusyError(error.retry_after_s or _RETRY_S) from error
    except RayTaskError as error:
        raise _cause(error) from error
    except RayActorError as error:
        # Serve itself asks another replica where one dies before it has taken the request.
        raise _DiedError(
            "The replica that had it died: it worked longer than timeout_s, or was killed, out of memory, or "
            "crashed in native code."
        ) from error
    except (RayError, RayServeException) as error:
        raise RewardError("No replica of this reward answers now: it died, or is being started.") from error


def _cause(error: RayTaskError) -> Exception:
    """What the replica raised, without the text that Ray adds, which holds a traceback."""
    cause = error.cause
    if isinstance(cause, BusyError):
        return BusyError(cause.retry_after_s)
    if isinstance(cause, BackPressureError):
        return BusyError(_RETRY_S)
    if isinstance(cause, RewardError):
        return RewardError(str(cause))
    return RewardError(f"A replica of this reward failed with {type(cause).__name__}; its log says more.")
