"""From the rewards of a configuration to a RewardSum on the Ray cluster of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.serve.schema import ApplicationStatus

from common.config.services import AppReward, RewardEntry, RewardServiceSection, RewardSpec, UrlReward
from common.errors import RewardError, StuckError
from reward_service.client.http_transport import open_url, start_asker
from reward_service.client.reward_client import RewardClient
from reward_service.client.reward_sum import RewardSum
from reward_service.client.transport import RewardTransport
from reward_service.contract.registry import naming
from reward_service.contract.settings import served_settings
from reward_service.on_ray.app import ONGOING_GROUPS, embedded_app, groups_at_a_replica, open_app
from reward_service.on_ray.deployment import deploy, describe, end
from reward_service.on_ray.handles import applications, hush_serve
from reward_service.on_ray.lifeline import start_lifeline

START_LIMIT_S = 600.0
POLL_S = 0.2
_COMING = frozenset({ApplicationStatus.NOT_STARTED, ApplicationStatus.DEPLOYING, ApplicationStatus.UNHEALTHY})

Form = TypeVar("Form", RewardSpec, AppReward, UrlReward)


def start_rewards(
    rewards: Mapping[str, RewardEntry],
    gold: Mapping[str, RewardEntry],
    section: RewardServiceSection,
    run_name: str,
    owner: str,
    start_limit_s: float = START_LIMIT_S,
    stop_serve: bool = True,
    waits_for: Callable[[str], None] = lambda _: None,
) -> RewardSum:
    """Start the embedded rewards side by side, find the others, and wait until all of them answer.

    run_name: the application of an embedded reward is called <run name>-<its name>. owner: who starts them;
    applications of those names that the same owner left behind are replaced. stop_serve: let `shutdown` end
    Serve where Serve is started here; false where Ray itself ends right after. waits_for: told what it waits
    for, in words, again and again.

    Raises RewardError where a reward cannot be built, does not run or is not reachable, StuckError past
    start_limit_s seconds. Nothing that was started stays then.
    """
    hush_serve()
    entries = {**rewards, **gold}
    with ExitStack() as undo:
        wait_until_running(_of(entries, AppReward), start_limit_s, waits_for)
        askers = _start_askers(_of(entries, UrlReward), section, undo)
        transports: dict[str, RewardTransport] = {}
        embedded = _of(entries, RewardSpec)
        transports |= _deploy(embedded, section, run_name, owner, start_limit_s, stop_serve, waits_for, undo)
        for name, app in _of(entries, AppReward).items():
            with naming(name):
                transports[name] = open_app(app.app, ONGOING_GROUPS, ONGOING_GROUPS)
        for name, url in _of(entries, UrlReward).items():
            with naming(name):
                transports[name] = open_url(url, askers[name], section)
        at_end = undo.pop_all()
    clients = {name: RewardClient(name, transports[name], section) for name in entries}
    return RewardSum(clients, {name: entry.weight for name, entry in rewards.items()}, at_end)


def wait_until_running(
    apps: Mapping[str, AppReward], limit_s: float, waits_for: Callable[[str], None] = lambda _: None
) -> None:
    """Wait for applications that are being started, changed or mended. waits_for: see start_rewards.

    Raises RewardError where one is not there or could not be deployed, and StuckError after limit_s seconds.
    """
    end_at = time.monotonic() + limit_s
    while coming := _coming(apps):
        if time.monotonic() > end_at:
            waited = f"Waited {limit_s:g} s for the application"
            states = [f"{waited} of reward {name!r} to run. {describe(apps[name].app)}" for name in coming]
            raise StuckError(" ".join(states))
        waits_for(f"{', '.join(f'the application {apps[name].app}' for name in coming)} to run")
        time.sleep(POLL_S)


def _coming(apps: Mapping[str, AppReward]) -> list[str]:
    """Those that do not run yet. Raises RewardError where one will not."""
    running = applications() if apps else {}
    for name, entry in apps.items():
        if entry.app not in running:
            there = ", ".join(sorted(running)) or "none"
            raise RewardError(
                f"Reward {name!r}: the cluster has no application {entry.app!r}; it has: {there}. Deploy it "
                "first, for example with `serve deploy reward_service/serve.yaml`."
            )
        status = running[entry.app].status
        if status not in _COMING and status != ApplicationStatus.RUNNING:
            raise RewardError(f"Reward {name!r} does not run. {describe(entry.app)}")
    return [name for name, entry in apps.items() if running[entry.app].status in _COMING]


def _of(entries: Mapping[str, RewardEntry], form: type[Form]) -> dict[str, Form]:
    return {name: entry for name, entry in entries.items() if isinstance(entry, form)}


def _start_askers(
    urls: Mapping[str, UrlReward], section: RewardServiceSection, undo: ExitStack
) -> dict[str, ActorHandle]:
    askers = {}
    for name, entry in urls.items():
        with naming(name):
            askers[name] = start_asker(entry, section)
            undo.callback(ray.kill, askers[name])
    return askers


def _deploy(
    embedded: Mapping[str, RewardSpec],
    section: RewardServiceSection,
    run_name: str,
    owner: str,
    start_limit_s: float,
    stop_serve: bool,
    waits_for: Callable[[str], None],
    undo: ExitStack,
) -> dict[str, RewardTransport]:
    if not embedded:
        return {}
    settings = {name: served_settings(spec, section) for name, spec in embedded.items()}
    own = {name: f"{run_name}-{name}" for name in embedded}
    lifeline = start_lifeline()
    undo.callback(ray.kill, lifeline)
    apps = {own[name]: embedded_app(name, owner, settings[name], section, lifeline) for name in embedded}
    undo.callback(end, deploy(apps, owner, start_limit_s, stop_serve, waits_for))
    held = {name: groups_at_a_replica(settings[name]) for name in embedded}
    return {name: open_app(own[name], section.replicas * held[name], held[name]) for name in embedded}
