"""Names inside an application of the reward service, and the way to its replicas."""

from __future__ import annotations

import asyncio
import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import AuthenticationError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatusOverview

from common.cluster.references import GIVE_TOKEN
from common.errors import RewardError
from reward_service.contract.results import RUNNING, Description, Report

DEPLOYMENT = "Reward"
"""The deployment that scores, in every application. With HTTP, a second deployment stands in front of it."""

STATUS_LIMIT_S = 20.0
UNLISTED = "_ray_internal_prdp_status"
"""Ray's dashboard lists no job of a namespace that begins like this."""

QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""How Serve and its replicas log."""

_known: ActorHandle | None = None


def hush_serve() -> None:
    """Keep this process's own Serve off the terminal, where its warnings would tear the progress display.
    What matters of them reaches the caller as an error."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def serve_controller() -> ActorHandle | None:
    """The controller of the Serve that runs on this cluster: another one after `serve shutdown`. None where
    there is none."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except (ValueError, RayError):
        return None


def connect_serve() -> ActorHandle:
    """Let this process speak to the Serve that runs; its controller.

    Serve itself keeps the first controller that it finds, also once it has been shut down, and only
    `serve.start` looks whether that one lives. Raises RewardError where no Serve runs.
    """
    global _known
    controller = serve_controller()
    if controller is None:
        raise RewardError("No Serve runs on this cluster.")
    if controller != _known:
        serve.start()
        _known = controller
    return controller


def applications() -> dict[str, ApplicationStatusOverview]:
    """The applications of the Serve that runs, by name; none where no Serve runs."""
    if serve_controller() is None:
        return {}
    connect_serve()
    return dict(serve.status().applications)


def reward_handle(app: str) -> DeploymentHandle:
    """A handle to the replicas of an application, whether or not it also answers HTTP.

    It is of the Serve that runs: once that is shut down, it never answers again. Raises RewardError where
    Serve does not run or has no such application.
    """
    connect_serve()
    try:
        return serve.get_deployment_handle(DEPLOYMENT, app)
    except (RayServeException, RayError, KeyError) as error:
        raise RewardError(f"No reward application {app!r} runs on this cluster.") from error


def ask_replica(app: str, method: str, limit_s: float) -> Any:
    """Call a method of one of an application's replicas and wait for it, in any thread.

    Raises RewardError where it does not answer in time.
    """

    async def ask() -> Any:
        # A copy: Serve keeps one handle an application, and may tie it to the first loop that uses it.
        response = getattr(copy.copy(reward_handle(app)), method).remote()
        return await asyncio.wait_for(response, limit_s)

    try:
        # In a thread, because this one may have an event loop.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(ask())).result()
    except (TimeoutError, RayError, RayServeException) as error:
        raise RewardError(f"The application {app!r} does not answer: {short(error)}") from error


def report_applications() -> dict[str, Report]:
    """How each reward application is, by its name: what Serve knows, then what each replica says.

    Joins the cluster here and leaves it again, unless this process is in one already. Raises RewardError
    where there is none.
    """
    hush_serve()
    joined = not ray.is_initialized()
    if joined:
        try:
            ray.init(address="auto", namespace=UNLISTED, logging_level=logging.ERROR, log_to_driver=False)
        except AuthenticationError as error:
            raise RewardError(f"The Ray cluster here wants a token. {GIVE_TOKEN}") from error
        except ConnectionError as error:
            raise RewardError("No Ray cluster runs here. Start one, or give addresses (http...).") from error
        except (RuntimeError, ValueError, OSError, RayError) as error:
            raise RewardError(f"The Ray cluster here could not be joined: {short(error)}") from error
    try:
        rewards = {name: app for name, app in sorted(applications().items()) if DEPLOYMENT in app.deployments}
        with ThreadPoolExecutor(max(1, len(rewards))) as pool:
            return dict(zip(rewards, pool.map(_report, rewards, rewards.values()), strict=True))
    finally:
        if joined:
            ray.shutdown()


def _report(name: str, application: ApplicationStatusOverview) -> Report:
    deployment = application.deployments[DEPLOYMENT]
    running = sum(count for state, count in deployment.replica_states.items() if state == RUNNING)
    told = (application.message or deployment.message).strip()

    async def ask() -> list[Any]:
        # Past the queues, so that busy replicas answer too.
        asked = copy.copy(reward_handle(name)).broadcast("describe")
        return await asked.results_async(timeout_s=STATUS_LIMIT_S, return_exceptions=True)

    try:
        said = asyncio.run(ask())
    except (TimeoutError, RayError, RayServeException, RewardError) as error:
        said = [error]
    answers = tuple(one for one in said if isinstance(one, Description))
    silence = next((short(one) for one in said if isinstance(one, BaseException)), "")
    return Report(application.status.value, told, running, answers, silence)


def short(error: BaseException | None) -> str:
    """An error's type and last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:400]
