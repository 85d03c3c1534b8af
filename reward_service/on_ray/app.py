"""A reward on Ray Serve, both ends of it: replicas, each an engine that Serve starts, watches, and gives its
settings; and the transport that asks them by handle, images by reference."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from common.cluster.fate import end_with_parent
from common.cluster.process_options import process_options
from common.config.services import RewardServiceSection
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
from reward_service.contract.settings import ServedReward, read_settings
from reward_service.engine.engine import Engine, end_process
from reward_service.on_ray.deployment import describe
from reward_service.on_ray.handles import (
    DEPLOYMENT,
    QUIET,
    ask_replica,
    connect_serve,
    reward_handle,
    serve_controller,
    short,
)
from reward_service.on_ray.lifeline import end_with
from reward_service.on_ray.metrics import RayMeter
from reward_service.on_ray.shadow import Shadow

HEALTH_PERIOD_S = 2.0
HEALTH_LIMIT_S = 30.0
STOP_LIMIT_S = 5.0
DRAIN_LIMIT_S = 120.0
BUILD_TRIES = 2
ONGOING_GROUPS = 32
SPARE_REQUESTS = 4
"""Requests that a replica takes beyond a run's groups, which fill their places all the time: what it is, who
started it, whether it works."""
QUEUED_GROUPS = 256
DESCRIBE_LIMIT_S = 60.0
STATUS_LIMIT_S = 10.0
LOOK_S = 1.0
"""How often to look which Serve runs, which costs half a millisecond."""


def hide_gpus_of_others() -> None:
    """Ray lets a replica that asked for no GPU see all of them, and a scorer would take the first."""
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class RewardReplica:
    """A replica of one reward. Serve gives it its settings (`user_config`) before it sends groups.

    The first settings are built and checked before the replica is ready; where they fail, it does not start.
    Later ones are built beside the scorer that answers: see Engine.change.

    name: of the reward. owner: who started the application; empty where a person deployed it.
    lifeline: of the driver that it ends with; None where it outlives who started it.
    """

    def __init__(self, name: str, owner: str, lifeline: ActorHandle | None = None) -> None:
        end_with_parent()
        hide_gpus_of_others()
        self._name = name
        self._owner = owner
        self._lifeline = lifeline
        self._end: asyncio.Task[None] | None = None
        self._engine: Engine | None = None
        self._shadow = Shadow()
        self._changes: set[asyncio.Task[str]] = set()

    async def reconfigure(self, given: Mapping[str, Any]) -> None:
        """Serve's call for new settings. Raises ConfigError or RewardError only where there were none yet."""
        if self._engine is None:
            if self._lifeline is not None:
                self._end = asyncio.create_task(end_with(self._lifeline))
            settings = read_settings(given, f"user_config of reward {self._name!r}")
            self._engine = await Engine.start(self._name, settings, end_process, RayMeter.start(self._name))
            return
        # Serve sends no groups while this call lasts, and building may take minutes, so it is not awaited.
        change = asyncio.create_task(self._engine.change(given))
        self._changes.add(change)
        change.add_done_callback(self._changes.discard)

    async def score(self, prompt: str, images: NDArray[np.uint8]) -> Reply:
        """Score one group, uint8 (B, height, width, 3), and let the shadow score it too.

        images is best passed to the handle as an object reference. Raises BusyError.
        """
        engine = self._loaded()
        settings = engine.settings
        if not settings.shadow_app:
            return await engine.score(prompt, images)
        async with self._shadow.asked(settings.shadow_app, prompt, images) as asked:
            reply = await engine.score(prompt, images)
            return replace(reply, shadow=await self._shadow.say(asked, settings.shadow_wait_s))

    async def score_alone(self, prompt: str, images: NDArray[np.uint8]) -> Reply:
        """Score one group as a shadow: without a shadow of its own, so that no two can ask each other."""
        return await self._loaded().score(prompt, images)

    async def describe(self) -> Description:
        """Which reward this is, and how it is set."""
        return await self._loaded().describe()

    async def probe(self) -> float:
        """Does the scorer work, and how many seconds ago did it last? Raises RewardError."""
        return await self._loaded().probe()

    async def owner(self) -> str:
        """Who started the application."""
        return self._owner

    async def check_health(self) -> None:
        """Serve's health check. Raises RewardError."""
        await self._loaded().check_health()

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RewardError(
                f"Reward {self._name!r} has no settings; give its deployment {DEPLOYMENT!r} a user_config, "
                "at least {scorer: NAME}."
            )
        return self._engine


_REWARD = serve.deployment(
    name=DEPLOYMENT,
    health_check_period_s=HEALTH_PERIOD_S,
    health_check_timeout_s=HEALTH_LIMIT_S,
    graceful_shutdown_wait_loop_s=0.1,
    max_constructor_retry_count=BUILD_TRIES,
    logging_config=QUIET,
)(RewardReplica)


def served_app(name: str) -> serve.Application:
    """The application of a reward that a person deploys; settings and resources come from the file.

    A changed code version loses nothing: new replicas are started first, and old ones answer what they hold.
    """
    deployment = _REWARD.options(
        max_ongoing_requests=ONGOING_GROUPS + SPARE_REQUESTS,
        max_queued_requests=QUEUED_GROUPS,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=DRAIN_LIMIT_S,
    )
    return deployment.bind(name, "")


def in_job(own: Mapping[str, Any]) -> dict[str, Any]:
    """An environment with what the job's adds to it. Serve gives a deployment that has one of its own no more
    of the job's than its folder."""
    job = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    added = {name: job[name] for name in ("env_vars", "pip", "uv", "conda", "py_modules") if name in job}
    return {**added, **own, "env_vars": {**added.get("env_vars", {}), **own["env_vars"]}}


def embedded_app(
    name: str,
    owner: str,
    settings: ServedReward,
    section: RewardServiceSection,
    lifeline: ActorHandle | None = None,
) -> serve.Application:
    """The application of a reward that a run starts for itself, with the resources of `reward_service` and
    the environment of the run's job.

    lifeline: of the driver that it ends with.
    """
    options = process_options(section)
    deployment = _REWARD.options(
        num_replicas=section.replicas,
        ray_actor_options=options | {"runtime_env": in_job(options["runtime_env"])},
        user_config=settings.model_dump(mode="json"),
        max_ongoing_requests=groups_at_a_replica(settings) + SPARE_REQUESTS,
        max_queued_requests=section.queue_groups,
        graceful_shutdown_timeout_s=STOP_LIMIT_S,
    )
    return deployment.bind(name, owner, lifeline)


def groups_at_a_replica(settings: ServedReward) -> int:
    """Groups that are out at once for each embedded replica: one batch in work and the next one filling."""
    return 2 * settings.max_batch_groups


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
    described: Description = ask_replica(app, "describe", DESCRIBE_LIMIT_S)
    return ServeTransport(app, window, held, described)
