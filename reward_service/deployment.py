"""Starting and ending the reward application on Ray Serve, with limits on every wait."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from common.errors import RewardError, StuckError

_POLL_S = 0.1
_OUR_ERROR = f"{RewardError.__module__}.{RewardError.__name__}: "


@dataclass(frozen=True)
class Deployment:
    """A running application. stop_serve: Serve itself ends with it."""

    name: str
    handle: DeploymentHandle
    stop_serve: bool


def deploy(app: serve.Application, name: str, limit_s: float, stop_serve: bool) -> Deployment:
    """Start Serve where it does not run, without its HTTP proxy, deploy `app`, and wait until it is healthy.

    An application of that name that is there already is replaced. stop_serve: let Serve end with the
    application where Serve is started here. Raises RewardError with the replica's own error where it cannot
    be built, and StuckError after `limit_s` seconds; nothing stays running then.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    started_here = not _serve_runs()
    serve.start(
        proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False}
    )
    if name in serve.status().applications:
        serve.delete(name)
    (handle,) = serve.run_many(
        [serve.RunTarget(app, name=name, route_prefix=None)], wait_for_applications_running=False
    )
    deployment = Deployment(name, handle, stop_serve and started_here)
    with ExitStack() as undo:
        undo.callback(end, deployment)
        _wait_until_running(name, limit_s)
        undo.pop_all()
    return deployment


def end(deployment: Deployment) -> None:
    """Delete the application, and shut Serve down where that was agreed on."""
    if deployment.name in serve.status().applications:
        serve.delete(deployment.name)
    if deployment.stop_serve:
        serve.shutdown()


def describe(name: str) -> str:
    """The application's state in words, with its replicas' last error."""
    application = serve.status().applications.get(name)
    if application is None:
        return f"Serve has no application {name!r}."
    told = _last_words(application.message)
    for state in application.deployments.values():
        told = _last_words(state.message) or told
    return f"Serve's application {name!r} is {application.status.value}. {told}".strip()


def _wait_until_running(name: str, limit_s: float) -> None:
    end_at = time.monotonic() + limit_s
    while time.monotonic() < end_at:
        status = serve.status().applications[name].status
        if status == ApplicationStatus.RUNNING:
            return
        if status == ApplicationStatus.DEPLOY_FAILED:
            raise RewardError(f"The reward service cannot start. {describe(name)}")
        time.sleep(_POLL_S)
    raise StuckError(
        f"The reward service was not ready after {limit_s:g} s. {describe(name)} Either scorers take long to "
        "load, or the CPUs, GPUs and labels that the reward_service section asks for are not free. Free "
        f"now: {_compute(ray.available_resources())}, of {_compute(ray.cluster_resources())}."
    )


def _last_words(message: str) -> str:
    """What a person can act on: our own error's text out of a traceback, or else its last line."""
    _, ours, text = message.rpartition(_OUR_ERROR)
    if ours:
        return text.strip()
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _compute(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0.0):g} {kind}" for kind in ("CPU", "GPU"))


def _serve_runs() -> bool:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True
