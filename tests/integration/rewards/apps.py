"""A cluster with reward applications for the tests: starting it, asking it, loading it, looking at it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.context import _get_global_client, _set_global_client

from common.trajectory import RewardScores
from reward_service.contract.results import Description, Reply
from reward_service.contract.settings import ServedReward
from reward_service.engine.build import build_reward
from reward_service.on_ray.handles import DEPLOYMENT, reward_handle

ROOT = Path(__file__).parents[3]
LIMIT_S = 240.0  # starting a replica takes a minute on a busy machine


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@dataclass(frozen=True)
class Cluster:
    """Addresses of its dashboard and of its control store, the port of Serve's HTTP proxy, and its logs."""

    dashboard: str
    gcs: str
    http_port: int
    logs: Path


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster whose processes find our packages, with Serve and its HTTP proxy."""
    http_port = free_port()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")  # a busy machine starts it slowly
        patch.chdir(ROOT)
        context = ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=True,
            dashboard_port=free_port(),
            log_to_driver=False,
            object_store_memory=300_000_000,
            # Workers that wait for work are of no use to processes with an environment of their own.
            _system_config={"metrics_report_interval_ms": 1000, "prestart_worker_first_driver": False},
        )
        stack.callback(ray.shutdown)
        # A run in this process may have left Serve's client of a cluster that is gone.
        _set_global_client(None)
        start_serve(http_port)
        stack.callback(serve.shutdown)
        info = context.address_info
        logs = Path(info["session_dir"]) / "logs"
        yield Cluster(f"http://{context.dashboard_url}", info["gcs_address"], http_port, logs)


def start_serve(http_port: int) -> None:
    """Start Serve with its HTTP proxy."""
    serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": http_port})


def images_of(prompt: str, count: int = 4) -> NDArray[np.uint8]:
    """Images that depend on the prompt only."""
    generator = np.random.default_rng(sum(prompt.encode()))
    return generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def ask(app: str, prompt: str) -> Reply:
    """The reply of an application about a prompt's images, which travel by reference."""
    response = reward_handle(app).score.remote(prompt, ray.put(images_of(prompt)))
    reply: Reply = response.result(timeout_s=LIMIT_S)
    return reply


def describe(app: str) -> Description:
    """Of one replica of an application."""
    description: Description = reward_handle(app).describe.remote().result(timeout_s=LIMIT_S)
    return description


def pids(app: str) -> set[int]:
    """Processes of an application's replicas that answer."""
    apps = _get_global_client().get_serve_details()["applications"]
    if app not in apps:
        return set()
    replicas = apps[app]["deployments"][DEPLOYMENT]["replicas"]
    return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}


def wait_until(done: Callable[[], bool], what: str) -> None:
    """Fails where it does not come true in time."""
    end_at = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < end_at, f"in vain: {what}"
        time.sleep(0.2)


def assert_scored(reply: Reply, prompt: str, settings: ServedReward) -> None:
    """The reply is what the service says without Ray."""
    assert isinstance(reply.outcome, RewardScores), reply.outcome
    service = build_reward(reply.outcome.stamp.name, settings)
    (wanted,) = service.score_groups([(prompt, images_of(prompt))])
    assert isinstance(wanted, RewardScores)
    np.testing.assert_allclose(reply.outcome.rewards, wanted.rewards, rtol=1e-6)
    np.testing.assert_allclose(reply.outcome.differences, wanted.differences, atol=1e-6)
    assert reply.outcome.stamp == wanted.stamp


class Load:
    """Clients that ask an application without pause, and what they saw."""

    def __init__(self, app: str, clients: int = 8) -> None:
        self._app = app
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[row]) for row in range(clients)]
        self.replies: list[tuple[str, Reply]] = []
        self.errors: list[str] = []
        self.waits: list[float] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S)

    def _ask(self, row: int) -> None:
        handle, number = reward_handle(self._app), 0
        while not self._stop.is_set():
            prompt, number = f"client {row} asks {number % 5}", number + 1
            started = time.monotonic()
            try:
                reply = handle.score.remote(prompt, ray.put(images_of(prompt))).result(timeout_s=LIMIT_S)
            except (RayActorError, RayTaskError, TimeoutError) as error:
                self.errors.append(repr(error))
            else:
                self.replies.append((prompt, reply))
                self.waits.append(time.monotonic() - started)
