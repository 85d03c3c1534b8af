"""Names inside an application of the reward service, and the way to its replicas."""

from __future__ import annotations

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.serve import context
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from common.errors import RewardError

DEPLOYMENT = "Reward"
"""The deployment that scores, in every application. With HTTP, a second deployment stands in front of it."""


def serve_id() -> str:
    """Which Serve runs on this cluster: another one after `serve shutdown`. Empty where none is found."""
    try:
        found: str = _controller()._actor_id.hex()
    except (ValueError, RayError):
        return ""
    return found


def check_serve(limit_s: float) -> None:
    """Raises RewardError where no Serve runs, or it does not answer within limit_s: it may be starting."""
    try:
        ray.get(_controller().check_alive.remote(), timeout=limit_s)
    except (ValueError, RayError) as error:
        raise RewardError("No Serve that answers runs on this cluster.") from error


def forget_ended_serve() -> None:
    """Let this process look for Serve anew where the one that it knows has been shut down.

    Serve keeps the first controller that it finds as long as the process lives, and its handles with it.
    """
    known = context._global_client
    if known is not None and known._controller._actor_id.hex() != serve_id():
        context._disconnect()


def reward_handle(app: str) -> DeploymentHandle:
    """A handle to the replicas of an application, whether or not it also answers HTTP.

    Its answers are object references, and threads without an event loop may use it, also where the
    environment sets RAY_SERVE_THROUGHPUT_OPTIMIZED, which makes handles that can do neither. It is of the
    Serve that runs: once that is shut down (see serve_id), it never answers again.

    Raises RewardError where Serve does not run or has no such application.
    """
    forget_ended_serve()
    try:
        handle: DeploymentHandle = serve.get_deployment_handle(DEPLOYMENT, app)
    except (RayServeException, RayError, KeyError) as error:
        raise RewardError(f"No reward application {app!r} runs on this cluster.") from error
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)
    return handle.options(_by_reference=True)


def _controller() -> ActorHandle:
    """Raises ValueError where Serve does not run."""
    return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
