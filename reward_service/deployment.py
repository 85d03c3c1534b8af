"""Starting and ending the reward application on Ray Serve, with limits on every wait."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from common.errors import RewardError, StuckError

_POLL_S = 0.1


@dataclass(frozen=True)
class Deployment:
    """A running application. owns_serve: Serve itself was started for it."""

    name: str
    handle: DeploymentHandle
    owns_serve: bool


def deploy(app: serve.Application, name: str, limit_s: float) -> Deployment:
    """Start Serve where it does not run, without its HTTP proxy, deploy `app`, and wait until it is healthy.

    An application of that name that is there already is replaced. Raises RewardError with the replica's own
    error where it cannot be built, and StuckError after `limit_s` seconds; nothing stays running then.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    owns_serve = not _serve_runs()
    serve.start(
        proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False}
    )
    if name in serve.status().applications:
        serve.delete(name)
    (handle,) = serve.run_many(
        [serve.RunTarget(app, name=name, route_prefix=None)], wait_for_applications_running=False
    )
    deployment = Deployment(name, handle, owns_serve)
    try:
        _wait_until_running(name, limit_s)
    except (RewardError, StuckError):
        end(deployment)
        raise
    return deployment


def end(deployment: Deployment) -> None:
    """Delete the application, and shut Serve down where it was started for it."""
    if deployment.owns_serve:
        serve.shutdown()
    elif deployment.name in serve.status().applications:
        serve.delete(deployment.name)


def describe(name: str) -> str:
    """The application's state in words, with the replicas' last error."""
    application = serve.status().applications.get(name)
    if application is None:
        return f"Serve has no application {name!r}"
    messages = [application.message, *(state.message for state in application.deployments.values())]
    told = " ".join(message for message in dict.fromkeys(messages) if message)
    return f"application {name!r} is {application.status.value}. {told}".strip()


def _wait_until_running(name: str, limit_s: float) -> None:
    end_at = time.monotonic() + limit_s
    while time.monotonic() < end_at:
        status = serve.status().applications[name].status
        if status == ApplicationStatus.RUNNING:
            return
        if status == ApplicationStatus.DEPLOY_FAILED:
            raise RewardError(f"The reward service cannot start: {describe(name)}")
        time.sleep(_POLL_S)
    raise StuckError(
        f"The reward service was not ready after {limit_s:.0f} s: {describe(name)} It waits for the CPUs, "
        "GPUs and labels of reward_service to be free, or for scorers to load."
    )


def _serve_runs() -> bool:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True
