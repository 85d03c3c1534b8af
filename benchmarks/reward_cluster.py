"""A Ray cluster of this machine with reward applications, deployed as `serve deploy` does."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from common.errors import RewardError, StuckError
from reward_service.on_ray.handles import DEPLOYMENT

ROOT = Path(__file__).parent.parent
START_LIMIT_S = 600.0
POLL_S = 0.1
_OBJECT_STORE_BYTES = 400_000_000
_LOGICAL_CPUS = 16
"""So many that Ray never refuses a replica for want of them: the machine's cores are shared by all."""


@dataclass(frozen=True)
class ServedApp:
    """One reward application of one replica. http: with the gateway, under /name."""

    name: str
    settings: Mapping[str, Any]
    http: bool = False

    def as_file(self) -> dict[str, Any]:
        """Its entry in a Serve file."""
        reward = {
            "name": DEPLOYMENT,
            "num_replicas": 1,
            "max_surge_percent": 100,
            "ray_actor_options": {"num_cpus": 1},
            "user_config": dict(self.settings),
        }
        return {
            "name": self.name,
            "route_prefix": f"/{self.name}" if self.http else None,
            "import_path": "reward_service.serve:build",
            "args": {"name": self.name, "http": self.http},
            "deployments": [reward],
        }


def file_of(apps: Iterable[ServedApp], http_port: int) -> dict[str, Any]:
    """The Serve file of these applications, as read from YAML; with a proxy where one of them needs it."""
    entries = [app.as_file() for app in apps]
    answers_http = any(entry["route_prefix"] is not None for entry in entries)
    return {
        "proxy_location": "EveryNode" if answers_http else "Disabled",
        "http_options": {"host": "127.0.0.1", "port": http_port},
        "applications": entries,
    }


class RewardCluster:
    """Applications by name, and the file that was deployed last. dashboard: Serve's part of it."""

    def __init__(self, dashboard: ServeSubmissionClient, http_port: int) -> None:
        self._dashboard = dashboard
        self._http_port = http_port
        self._apps: dict[str, ServedApp] = {}

    def deploy(self, *apps: ServedApp) -> None:
        """Apply the file with these applications changed or added. Does not wait for them."""
        self._apps |= {app.name: app for app in apps}
        self._dashboard.deploy_applications(file_of(self._apps.values(), self._http_port))

    def url(self, name: str) -> str:
        """Base address of an application's gateway."""
        return f"http://127.0.0.1:{self._http_port}/{name}"

    def pids(self, name: str) -> frozenset[int]:
        """Processes of an application's replicas that run."""
        deployments = self._dashboard.get_serve_details()["applications"][name]["deployments"]
        replicas = deployments.get(DEPLOYMENT, {}).get("replicas", [])
        return frozenset(one["pid"] for one in replicas if one["state"] == "RUNNING")

    def wait_running(self) -> None:
        """Raises StuckError where not all applications run in time, RewardError where one cannot."""
        wait_until(self._all_run, "all applications run")

    def _all_run(self) -> bool:
        there = serve.status().applications
        states = {name: str(there[name].status.value) for name in self._apps if name in there}
        failed = [name for name, state in states.items() if state == "DEPLOY_FAILED"]
        if failed:
            raise RewardError(f"{failed[0]!r} cannot be deployed: {there[failed[0]].message}")
        return len(states) == len(self._apps) and set(states.values()) == {"RUNNING"}


@contextmanager
def reward_cluster(folder: Path) -> Iterator[RewardCluster]:
    """Start a cluster whose processes find our packages and the modules in `folder`; end it afterwards."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with ray_environment(folder):
        context = ray.init(
            address="local",
            num_cpus=_LOGICAL_CPUS,
            include_dashboard=True,
            dashboard_port=free_port(),
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
        try:
            yield RewardCluster(ServeSubmissionClient(f"http://{context.dashboard_url}"), free_port())
        finally:
            serve.shutdown()
            ray.shutdown()


@contextmanager
def ray_environment(folder: Path) -> Iterator[None]:
    """Where Ray's processes and this one find modules, and how much CPU time Ray's get."""
    # By default Ray's workers are nicer than what they are compared with: other programs slow them only.
    wanted = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "RAY_worker_niceness": "0"}
    before = {key: os.environ[key] for key in wanted if key in os.environ}
    os.environ.update(wanted)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for key in wanted:
            del os.environ[key]
        os.environ.update(before)


def wait_until(
    done: Callable[[], bool], what: str, limit_s: float = START_LIMIT_S, poll_s: float = POLL_S
) -> None:
    """Raises StuckError where it does not come true in time."""
    end_at = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > end_at:
            raise StuckError(f"Waited {limit_s:g} s in vain until {what}.")
        time.sleep(poll_s)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
