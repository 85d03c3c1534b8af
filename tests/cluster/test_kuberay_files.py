"""The KubeRay manifests: known fields, the shape of cluster.yaml, a token, no root, limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from reward_service.contract.settings import read_settings
from tests.cluster.cluster_files import AWS, ROOT, read
from tests.cluster.kube_fields import KINDS, problems

FOLDER = ROOT / "deploy" / "kuberay"
FILES = sorted(FOLDER.glob("*.yaml"))
CLUSTER_KEYS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}


def of_name(path: Path) -> str:
    return path.name


def cluster_of(path: Path) -> dict[str, Any]:
    """The cluster's specification in a manifest of any kind."""
    tree = read(path)
    spec: dict[str, Any] = tree["spec"]
    return spec[CLUSTER_KEYS[tree["kind"]]] if tree["kind"] in CLUSTER_KEYS else spec


def pods(tree: Any) -> Iterator[dict[str, Any]]:
    """Every pod's specification below."""
    if isinstance(tree, dict):
        if "containers" in tree:
            yield tree
        for value in tree.values():
            yield from pods(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from pods(value)


def test_there_is_a_manifest_of_each_kind() -> None:
    assert {read(path)["kind"] for path in FILES} == set(KINDS)
    assert {read(path)["apiVersion"] for path in FILES} == {"ray.io/v1"}


@pytest.mark.parametrize("path", FILES, ids=of_name)
def test_every_field_is_known(path: Path) -> None:
    tree = read(path)
    assert list(problems(tree["spec"], KINDS[tree["kind"]], "spec")) == []


@pytest.mark.parametrize("path", FILES, ids=of_name)
def test_the_token_is_asked_for_and_the_version_is_ours(path: Path) -> None:
    cluster = cluster_of(path)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("path", FILES, ids=of_name)
def test_pods_have_no_root_no_privileges_and_limits(path: Path) -> None:
    found = list(pods(read(path)))
    assert found
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= {
                volume["name"] for volume in pod.get("volumes", [])
            }


@pytest.mark.parametrize("name", ["cluster.yaml", "job.yaml"])
def test_the_worker_groups_are_the_node_types_of_the_cluster_file(name: str) -> None:
    types = read(AWS)["available_node_types"]
    cluster = cluster_of(FOLDER / name)
    assert cluster["headGroupSpec"]["labels"] == types.pop("head")["labels"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups.keys() == types.keys()
    for group_name, group in groups.items():
        node = types[group_name]
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert group["labels"] == node["labels"]
        assert (group["minReplicas"], group["maxReplicas"]) == (node["min_workers"], node["max_workers"])
        assert {"CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"])} == node["resources"]


def test_the_job_runs_on_the_cluster_of_the_cluster_manifest() -> None:
    assert cluster_of(FOLDER / "job.yaml") == cluster_of(FOLDER / "cluster.yaml")


def test_ray_accepts_the_rewards_and_each_asks_for_a_token() -> None:
    given = yaml.safe_load(read(FOLDER / "service.yaml")["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(given)
    (pod, *_) = pods(read(FOLDER / "service.yaml"))
    variables = {item["name"]: item for item in pod["containers"][0]["env"]}
    for app in schema.applications:
        assert "valueFrom" in variables[app.args["token_env"]], "a token comes from a secret"
        reward = next(deployment for deployment in app.deployments if deployment.name == "Reward")
        read_settings(reward.user_config, app.name)
