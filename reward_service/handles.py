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

    Raises RewardError where Serve does not run or has no such application.
    """
    try:
        return serve.get_deployment_handle(DEPLOYMENT, app)
    except (RayServeException, KeyError) as error:
        raise RewardError(f"No reward application {app!r} runs on this cluster.") from error
