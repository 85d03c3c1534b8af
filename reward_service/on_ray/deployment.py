"""Starting and ending a run's own reward applications on Ray Serve, with limits on every wait."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from common.errors import RewardError, StuckError
from reward_service.on_ray.handles import QUIET, applications, ask_replica, serve_controller

_POLL_S = 0.1
_OWNER_WAIT_S = 10.0
_OUR_ERROR = re.compile(rf"{re.escape(RewardError.__module__)}\.\w+: ")


@dataclass(frozen=True)
class Deployment:
    """Applications that we started. stop_serve: Serve itself ends with them, unless it has others."""

    names: tuple[str, ...]
    stop_serve: bool


def deploy(
    apps: Mapping[str, serve.Application],
    owner: str,
    limit_s: float,
    stop_serve: bool,
    waits_for: Callable[[str], None] = lambda _: None,
) -> Deployment:
    """Deploy applications by name, side by side, and wait until all of them are healthy.

    Serve is started where it does not run, without its HTTP proxy. An application of a wanted name that is
    there already is replaced where it says that the same `owner` started it: an earlier try of this run that
    was killed. stop_serve: let Serve end with the applications where Serve is started here. waits_for: told
    what it waits for, in words, again and again.

    Raises RewardError where a name is taken by somebody else, or with the replica's own error where it cannot
    be built; and StuckError after `limit_s` seconds. Nothing of these stays running then.
    """
    started_here = serve_controller() is None
    waits_for("Serve to start" if started_here else "Serve")
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    deployment = Deployment(tuple(apps), stop_serve and started_here)
    _clear(apps, owner)
    targets = [serve.RunTarget(app, name=name, route_prefix=None) for name, app in apps.items()]
    with ExitStack() as undo:
        undo.callback(end, deployment)
        serve.run_many(
            targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
        )
        _wait_until_running(deployment.names, limit_s, waits_for)
        undo.pop_all()
    return deployment


def end(deployment: Deployment) -> None:
    """Delete these applications, and shut Serve down where that was agreed on and nobody else uses it."""
    there = applications()
    _delete(name for name in deployment.names if name in there)
    if deployment.stop_serve and not there.keys() - set(deployment.names):
        serve.shutdown()


def describe(name: str) -> str:
    """The application's state in words, with its replicas' last error."""
    application = applications().get(name)
    if application is None:
        return f"Serve has no application {name!r}."
    told = _last_words(application.message)
    for state in application.deployments.values():
        told = _last_words(state.message) or told
    return f"Serve's application {name!r} is {application.status.value}. {told}".strip()


def _clear(names: Iterable[str], owner: str) -> None:
    there = applications()
    taken = [name for name in names if name in there]
    for name in taken:
        if not owner or _owner_of(name) != owner:
            raise RewardError(
                f"The cluster has an application {name!r} already, and as far as it says this run did not "
                "start it. Give the run another name (run.name), or use that application: {app: "
                + name
                + "}. One that an earlier try of this run left waiting for room ends once it has started."
            )
    _delete(taken)


def _owner_of(name: str) -> str:
    """Who started an application; empty where it does not say."""
    try:
        owner: str = ask_replica(name, "owner", _OWNER_WAIT_S)
    except RewardError:
        return ""
    return owner


def _delete(names: Iterable[str]) -> None:
    """Delete applications, all at once. Raises StuckError where one is there past Serve's own limit."""
    names = list(names)
    try:
        with ThreadPoolExecutor(max(1, len(names))) as pool:
            list(pool.map(serve.delete, names))
    except TimeoutError as error:
        raise StuckError(f"Serve did not end {', '.join(names)}: {error}") from error


def _wait_until_running(names: tuple[str, ...], limit_s: float, waits_for: Callable[[str], None]) -> None:
    end_at = time.monotonic() + limit_s
    waiting = list(names)
    while waiting and time.monotonic() < end_at:
        there = applications()
        for name in waiting:
            # Gone: deleted, or Serve itself was shut down meanwhile.
            if name not in there or there[name].status == ApplicationStatus.DEPLOY_FAILED:
                raise RewardError(f"The reward service cannot start. {describe(name)}")
        states = {name: there[name].status for name in waiting}
        waiting = [name for name, status in states.items() if status != ApplicationStatus.RUNNING]
        if waiting:
            shown = ", ".join(f"{name} is {states[name].value}" for name in waiting)
            waits_for(f"the rewards' applications in Serve ({shown})")
        time.sleep(_POLL_S if waiting else 0.0)
    if waiting:
        raise StuckError(
            f"The reward service was not ready after {limit_s:g} s. {' '.join(map(describe, waiting))} "
            "Either scorers take long to load, or the CPUs, GPUs and labels that the reward_service section "
            f"asks for are not free. Free now: {_compute(ray.available_resources())}, of "
            f"{_compute(ray.cluster_resources())}."
        )


def _last_words(message: str) -> str:
    """What a person can act on: our own error's text out of a traceback, or else its last line."""
    ours = _OUR_ERROR.split(message)
    if len(ours) > 1:
        return ours[-1].strip()
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _compute(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0.0):g} {kind}" for kind in ("CPU", "GPU"))
