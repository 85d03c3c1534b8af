"""`ray up` over SSH on several hosts, jobs on them, a host that is lost, and `ray down`: docs/cluster.md.

The tests are steps: each begins where the one before ended. Only pip is left out (the hosts have no way out):
each host finds the environment installed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from driver.run.checkpoints import list_checkpoints
from tests.cluster.hosts import NEEDS_HOSTS, Host, ssh, start_hosts
from tests.cluster.operator_desk import DASHBOARD, ROLES, Desk, wait_until

pytestmark = [*NEEDS_HOSTS, pytest.mark.timeout(1200)]

REWARDS = """
proxy_location: EveryNode
http_options: {host: 127.0.0.1, port: 8000}
applications:
  - name: jpeg
    route_prefix: /jpeg
    import_path: reward_service.serve:build
    args: {name: jpeg, http: true}
    deployments:
      - name: Reward
        ray_actor_options: {num_cpus: 0.5, label_selector: {role: reward}}
        user_config: {scorer: jpeg_compressibility}
      - name: Gateway
        ray_actor_options: {num_cpus: 0, label_selector: {role: reward}}
"""


@dataclass(frozen=True)
class Running:
    """A cluster that is up."""

    desk: Desk
    hosts: dict[str, Host]

    @property
    def runs(self) -> Path:
        """Where jobs write, on the head."""
        return self.hosts["head"].home / "prdp-runs" / "cluster_quickstart"

    def role_of(self, node_id: str) -> str:
        """The role in a node's labels."""
        (node,) = [node for node in self.desk.listed("nodes") if node["node_id"] == node_id]
        return str(node["labels"]["role"])


def listening(cluster: Running, name: str) -> list[str]:
    """Addresses and ports that a host listens on."""
    asking = "ss --tcp --listening --numeric --no-header"
    shown = ssh(cluster.hosts[name], cluster.desk.key, asking).stdout
    return [line.split()[3] for line in shown.splitlines()]


@pytest.fixture(scope="module")
def cluster(network: None) -> Iterator[Running]:
    """Hosts with `ray up` done and all nodes there, and the dashboard forwarded."""
    with tempfile.TemporaryDirectory(prefix="prdp-hosts-") as folder:
        desk = Desk(Path(folder))
        desk.prepare()
        with start_hosts(tuple(ROLES), desk.key, desk.seed, desk.folder) as hosts:
            desk.write_cluster_file(hosts)
            desk.output("ray", "up", "--yes", "--no-config-cache", str(desk.cluster_file), limit_s=300)
            with desk.dashboard():
                wait_until(lambda: len(desk.living_nodes()) == len(ROLES), "all nodes", 600)
                yield Running(desk, hosts)


def test_each_host_is_a_node_with_its_role_and_the_head_computes_nothing(cluster: Running) -> None:
    nodes = {node["node_ip"]: node for node in cluster.desk.listed("nodes")}
    for name, host in cluster.hosts.items():
        assert nodes[host.address]["labels"]["role"] == ROLES[name]
        assert ("CPU" in nodes[host.address]["resources_total"]) == (name != "head")


def test_nothing_is_answered_without_the_token_and_the_dashboard_only_on_the_head(cluster: Running) -> None:
    refused = cluster.desk.call("ray", "job", "list", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "auth" in refused.stdout.lower()
    wrong = cluster.desk.call("ray", "list", "nodes", "--address", DASHBOARD, RAY_AUTH_TOKEN="wrong" * 8)
    assert wrong.returncode != 0
    at_8265 = [address for address in listening(cluster, "head") if address.endswith(":8265")]
    assert at_8265 == ["127.0.0.1:8265"]
    asking = "RAY_AUTH_MODE=disabled timeout 40 ray list nodes"
    stranger = ssh(cluster.hosts["head"], cluster.desk.key, asking)
    assert stranger.returncode != 0


def test_a_stopped_job_leaves_a_checkpoint_and_no_orphan(cluster: Running) -> None:
    cluster.desk.submit("first", "run.epochs=500", *cluster.desk.small)
    wait_until(lambda: " done |" in cluster.desk.logs("first"), "the first epoch", 300)

    def places() -> set[str]:
        return {actor["node_id"] for actor in cluster.desk.alive("ActorProcess")}

    # The run begins with the first of them.
    wait_until(lambda: len(places()) == 2, "two actors, each on a host of its own", 60)
    assert {cluster.role_of(place) for place in places()} == {"actor"}
    for part, role in {"LearnerRank": "learner", "ServeReplica": "reward"}.items():
        assert {cluster.role_of(row["node_id"]) for row in cluster.desk.alive(part)} == {role}
    cluster.desk.output("ray", "job", "stop", "first")
    assert "STOPPED" in cluster.desk.output("ray", "job", "list")
    shown = cluster.desk.logs("first")
    assert "Stopped; the last checkpoint is" in shown
    progress = [line for line in shown.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert progress
    assert "\x1b" not in "".join(progress), "a job's log has plain lines"
    assert len(list_checkpoints(cluster.runs)) == 1
    wait_until(lambda: not cluster.desk.alive(""), "the end of all actors, ranks, replicas and of Serve", 60)


def test_a_reward_is_deployed_by_itself_and_answers_http_on_its_own_machine_only(cluster: Running) -> None:
    file = cluster.desk.folder / "rewards.yaml"
    file.write_text(REWARDS)
    cluster.desk.output("serve", "deploy", "--address", DASHBOARD, str(file))
    shown = ("serve", "status", "--address", DASHBOARD, "--name", "jpeg")
    wait_until(lambda: "status: RUNNING" in cluster.desk.output(*shown), "the reward", 120)
    (replica,) = cluster.desk.alive("ServeReplica:jpeg:Reward")
    assert cluster.role_of(replica["node_id"]) == "reward"
    wait_until(lambda: "127.0.0.1:8000" in listening(cluster, "reward"), "the reward's HTTP address", 60)
    assert [at for at in listening(cluster, "reward") if at.endswith(":8000")] == ["127.0.0.1:8000"]


def test_the_same_job_goes_on_while_a_host_is_lost(cluster: Running) -> None:
    (before,) = list_checkpoints(cluster.runs)
    done = int(before.name.rsplit("_", 1)[1])
    cluster.desk.submit("second", f"run.epochs={done + 12}", "actors.timeout_s=120", *cluster.desk.small)
    epochs = r"epoch (\d+)/\d+ done"
    wait_until(lambda: len(re.findall(epochs, cluster.desk.logs("second"))) >= 2, "two more epochs", 300)
    assert f"Going on after epoch {done}" in cluster.desk.logs("second")
    cluster.hosts["actor-2"].kill()
    wait_until(lambda: cluster.desk.ended("second"), "the end of the run", 420)
    shown = cluster.desk.logs("second")
    assert cluster.desk.succeeded("second"), shown
    assert f"epoch {done + 12}/{done + 12} done" in shown
    assert list_checkpoints(cluster.runs)[-1].name.endswith(str(done + 12))
    assert len(cluster.desk.alive("ServeReplica:jpeg:Reward")) == 1, "a run ends its own rewards only"
    assert not cluster.desk.alive("ServeReplica:cluster_quickstart")


def test_ray_down_ends_the_cluster(cluster: Running) -> None:
    cluster.desk.output("ray", "down", "--yes", str(cluster.desk.cluster_file))
    key = cluster.desk.key
    left = [host for name, host in cluster.hosts.items() if name != "actor-2"]
    ended = "! pgrep --full '[r]aylet/raylet|[g]cs_server'"
    wait_until(lambda: all(ssh(host, key, ended).returncode == 0 for host in left), "the end of Ray", 180)
