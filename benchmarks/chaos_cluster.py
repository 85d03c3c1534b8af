"""A Ray cluster of several nodes on this machine, whose nodes may be killed, with a reward behind HTTP."""

from __future__ import annotations

import logging
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import ray
from ray import serve
from ray.cluster_utils import Cluster

from benchmarks.reward_cluster import ROOT, free_port, ray_environment, wait_until
from common.config.services import RewardServiceSection, RewardSpec
from reward_service.contract.settings import served_settings
from reward_service.http.limits import HttpLimits
from reward_service.http.token import TokenSource
from reward_service.on_ray.app import embedded_app
from reward_service.on_ray.gateway import build_gateway

WORKERS = 2
ANSWER_LIMIT_S = 10.0
WEB = "web"
_STORE_BYTES = 100_000_000
_HEAD_SETTINGS = {
    # The tiny trajectories and pictures must lie on their node, as large ones do, not in the driver.
    "max_direct_call_object_size": 1000,
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


class ChaosCluster:
    """A head without CPUs, which drivers join and which is never killed, and nodes that work."""

    def __init__(self, cluster: Cluster, http_port: int) -> None:
        self._cluster = cluster
        self.http_port = http_port

    @property
    def address(self) -> str:
        """Of the cluster, for ray.address."""
        return str(self._cluster.address)

    @property
    def url(self) -> str:
        """Of the reward behind HTTP."""
        return f"http://127.0.0.1:{self.http_port}/{WEB}"

    def add_nodes(self) -> None:
        """Add nodes until there are as many as at the beginning."""
        while len(self._cluster.worker_nodes) < WORKERS:
            self._cluster.add_node(num_cpus=2, object_store_memory=_STORE_BYTES)

    def mend(self) -> None:
        """Add nodes until there are as many as at the beginning, and wait until the reward answers."""
        self.add_nodes()
        wait_until(lambda: _answers(f"{self.url}/v1/describe"), f"the application {WEB} answers", 120.0)

    def kill_node(self, node_id: str) -> None:
        """Kill a node's raylet; its workers and what its object store held go with it."""
        (node,) = [own for own in self._cluster.worker_nodes if own.node_id == node_id]
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    @property
    def worker_ids(self) -> list[str]:
        """Ray's ids of the nodes that may be killed."""
        return sorted(node.node_id for node in self._cluster.worker_nodes)


@contextmanager
def chaos_cluster() -> Iterator[ChaosCluster]:
    """Start it, and end it whatever happens."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    head = {"num_cpus": 0, "object_store_memory": _STORE_BYTES, "_system_config": _HEAD_SETTINGS}
    with ray_environment(ROOT):
        cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            found = ChaosCluster(cluster, free_port())
            found.add_nodes()
            _serve_reward(found)
            yield found
        finally:
            ray.shutdown()
            cluster.shutdown()


def _serve_reward(cluster: ChaosCluster) -> None:
    """A reward of its own behind Serve's proxy, as a run on another cluster would ask it."""
    section = RewardServiceSection(cpus=0.1)
    settings = served_settings(RewardSpec(scorer="jpeg_compressibility"), section)
    replicas = embedded_app(WEB, "", settings, section)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": cluster.http_port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    serve.run(build_gateway(replicas, HttpLimits(), TokenSource()), name=WEB, route_prefix=f"/{WEB}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_LIMIT_S) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False
