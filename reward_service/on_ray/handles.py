"""Names inside an application of the reward service, and the way to its replicas."""

from __future__ import annotations

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from common.errors import RewardError

DEPLOYMENT = "Reward"
"""The deployment that scores, in every application. With HTTP, a second deployment stands in front of it."""


def reward_handle(app: str) -> DeploymentHandle:
    """A handle to the replicas of an application, whether or not it also answers HTTP.

    Its answers are object references, and threads without an event loop may use it, also where the
    environment sets RAY_SERVE_THROUGHPUT_OPTIMIZED, which makes handles that can do neither.

    Raises RewardError where Serve does not run or has no such application.
    """
    try:
        handle: DeploymentHandle = serve.get_deployment_handle(DEPLOYMENT, app)
    except (RayServeException, KeyError) as error:
        raise RewardError(f"No reward application {app!r} runs on this cluster.") from error
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)
    return handle.options(_by_reference=True)
