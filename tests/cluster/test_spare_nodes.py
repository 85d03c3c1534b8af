"""Pools that ask for room make nodes appear, and idle nodes leave: Ray's autoscaler v2, on nodes of one host.

Ray's own stand-in for a cloud starts each node as processes of the head's host.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from tests.cluster.hosts import NEEDS_HOSTS, ROOT, ssh, start_hosts
from tests.cluster.operator_desk import Desk, wait_until

pytestmark = [*NEEDS_HOSTS, pytest.mark.timeout(600)]

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
MACHINES: dict[str, Any] = {
    "cluster_name": "grows",
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    **{
        f"{when}commands": []
        for when in (
            "initialization_",
            "setup_",
            "head_setup_",
            "worker_setup_",
            "head_start_ray_",
            "worker_start_ray_",
        )
    },
    "max_workers": 3,
    "upscaling_speed": 10.0,
    "idle_timeout_minutes": 0.5,
    "provider": {
        "type": "external",
        "module": PROVIDER,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": FAKE_HEAD_NODE_TYPE,
    "available_node_types": {
        FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "actor": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            "labels": {"role": "actor"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 3,
        },
    },
}
START = " ".join(
    (
        "RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1 RAY_enable_autoscaler_v2=1",
        f"RAY_CLOUD_INSTANCE_ID={FAKE_HEAD_NODE_ID} RAY_OVERRIDE_NODE_ID_FOR_TESTING={FAKE_HEAD_NODE_ID}",
        f"RAY_NODE_TYPE_NAME={FAKE_HEAD_NODE_TYPE}",
        "ray start --head --port=6379 --num-cpus=2 --object-store-memory=200000000",
        "--autoscaling-config=$HOME/machines.yaml",
    )
)


@dataclass(frozen=True)
class Growing:
    """A head with an autoscaler."""

    desk: Desk

    def nodes(self, role: str) -> int:
        """Living nodes with this role."""
        return sum(node["labels"].get("role") == role for node in self.desk.living_nodes())


@pytest.fixture(scope="module")
def growing(network: None) -> Iterator[Growing]:
    """One host, the head alone."""
    with tempfile.TemporaryDirectory(prefix="prdp-grows-") as folder:
        desk = Desk(Path(folder))
        desk.prepare()
        (desk.seed / ".ray").mkdir()
        (desk.seed / ".ray" / "auth_token").write_text((desk.folder / "home/.ray/auth_token").read_text())
        (desk.seed / "machines.yaml").write_text(yaml.safe_dump(MACHINES))
        (desk.seed / ".bashrc").write_text(". ~/prdp/environment.sh\n")
        (desk.seed / "prdp" / "environment.sh").write_text((ROOT / "deploy/environment.sh").read_text())
        with start_hosts(("alone",), desk.key, desk.seed, desk.folder) as hosts:
            started = ssh(hosts["alone"], desk.key, START)
            assert started.returncode == 0, started
            with desk.forwarded(hosts["alone"]):
                yield Growing(desk)


def test_a_run_that_asks_for_actors_gets_nodes_and_idle_nodes_leave(growing: Growing) -> None:
    def epochs() -> int:
        return growing.desk.logs("grow").count(" done |")

    def places() -> set[str]:
        return {actor["node_id"] for actor in growing.desk.alive("ActorProcess")}

    assert growing.nodes("actor") == 0
    nowhere = (
        "learner.labels={}",
        "reward_service.labels={}",
        "learner.cpus=0.5",
        "reward_service.cpus=0.25",
    )
    growing.desk.submit("grow", "run.epochs=500", *nowhere, *growing.desk.small)
    wait_until(lambda: growing.nodes("actor") == 2, "a node for each of the two actors", 180)
    # The run has begun with the first of them.
    wait_until(lambda: len(places()) == 2, "two actors, each on a node of its own", 120)
    known = epochs()
    wait_until(lambda: epochs() > known, "another epoch", 60)
    growing.desk.output("ray", "job", "stop", "grow")
    assert "Stopped; the last checkpoint is" in growing.desk.logs("grow")
    wait_until(lambda: growing.nodes("actor") == 0, "the end of the idle nodes", 120)
