"""A reward that runs on the same Ray cluster, asked by its Serve handle: images travel by reference."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from common.errors import RewardError
from reward_service.client.transport import (
    FailedError,
    FinalError,
    ImagesRef,
    LostError,
    RefusedError,
    RequestError,
)
from reward_service.contract.results import BusyError, Description, Reply
from reward_service.on_ray.deployment import describe
from reward_service.on_ray.handles import (
    DEPLOYMENT,
    ask_replica,
    connect_serve,
    reward_handle,
    serve_controller,
    short,
)

DESCRIBE_LIMIT_S = 60.0
STATUS_LIMIT_S = 10.0
LOOK_S = 1.0
"""How often to look which Serve runs, which costs half a millisecond."""


@dataclass(frozen=True)
class _Link:
    """A handle, and the controller of the Serve that it is of."""

    controller: ActorHandle
    handle: DeploymentHandle


class ServeTransport:
    """Asks the application `app`; a RewardTransport.

    window: groups out at once, at most. held: groups that one replica holds, at most. described: what the
    application says of itself at the start.
    """

    def __init__(self, app: str, window: int, held: int, described: Description) -> None:
        self._app = app
        self.window = window
        self.stamp = described.stamp
        self.settings = described.settings
        # Of all batches that a replica can hold, and of one that was in work before.
        batches = math.ceil(held / described.settings["max_batch_groups"]) + 1
        self.limit_s = float(described.settings["timeout_s"]) * batches
        self._link: _Link | None = None
        self._linking = asyncio.Lock()
        self._looks_at = 0.0

    async def score(self, prompt: str, images: ImagesRef) -> Reply:
        """See RewardTransport."""
        try:
            link = await self._linked()
            response = cast(DeploymentResponse, link.handle.score.remote(prompt, images))
        except (RewardError, RayError, RayServeException) as error:
            raise RefusedError(f"Serve did not take it: {short(error)}") from error
        answer = asyncio.ensure_future(_read(response))
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=LOOK_S)
                if not answer.done() and not self._is_alive(link):
                    # Its queue ends with it, and nobody tells those who wait there.
                    raise RefusedError("Serve was shut down before it answered.")
        finally:
            if not answer.done():
                response.cancel()
                answer.cancel()
        try:
            return answer.result()
        except asyncio.CancelledError as error:
            raise FailedError("Serve cancelled the request.") from error

    async def absence(self) -> str | None:
        """See RewardTransport."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._absence), STATUS_LIMIT_S)
        except (RewardError, RayError, RayServeException, TimeoutError) as error:
            return f"Serve does not say how it is: {short(error)}"

    async def read_settings(self) -> Mapping[str, Any]:
        """See RewardTransport."""
        return (await asyncio.to_thread(_describe, self._app)).settings

    def _absence(self) -> str | None:
        connect_serve()
        application = serve.status().applications.get(self._app)
        deployment = application.deployments.get(DEPLOYMENT) if application else None
        is_there = deployment is not None and deployment.replica_states.get("RUNNING", 0)  # type: ignore[call-overload]
        return None if is_there else describe(self._app)

    async def _linked(self) -> _Link:
        """Raises RewardError, RayError or RayServeException where Serve or the application is not there."""
        async with self._linking:
            if self._link is None or not self._is_alive(self._link):
                # In a thread: Serve makes handles without a limit on its waits, and other groups wait here.
                self._link = await asyncio.to_thread(self._make_link)
            return self._link

    def _make_link(self) -> _Link:
        return _Link(connect_serve(), reward_handle(self._app))

    def _is_alive(self, link: _Link) -> bool:
        """Whether the Serve that a link is of still runs, as far as was seen in the last LOOK_S."""
        if self._link is link and time.monotonic() >= self._looks_at:
            self._looks_at = time.monotonic() + LOOK_S
            if serve_controller() != link.controller:
                self._link = None
        return self._link is link


async def _read(response: DeploymentResponse) -> Reply:
    """What a replica answers. Raises RequestError."""
    try:
        return cast(Reply, await response)
    except ObjectLostError as error:
        raise FinalError(f"Its images or its answer are lost: {short(error)}") from error
    except RayActorError as error:
        raise LostError(
            "The replica that scored it died: its scorer worked longer than timeout_s, or it was killed, out "
            "of memory, or crashed in native code."
        ) from error
    except RayTaskError as error:
        raise _of_replica(error.cause) from error
    except RayServeException as error:
        raise RefusedError(f"No replica took it: {short(error)}") from error
    except RayError as error:
        raise FailedError(f"Its answer cannot be read: {short(error)}") from error


def _of_replica(cause: Exception) -> RequestError:
    if isinstance(cause, BusyError):
        return RefusedError(str(cause), cause.retry_after_s)
    return FailedError(f"The replica failed: {short(cause)}")


def open_app(app: str, window: int, held: int) -> ServeTransport:
    """The transport to an application that runs. window: groups out at once; held: groups at one replica.

    Raises RewardError where it does not say what it is.
    """
    return ServeTransport(app, window, held, _describe(app))


def _describe(app: str) -> Description:
    described: Description = ask_replica(app, "describe", DESCRIBE_LIMIT_S)
    return described
