"""cluster.yaml and its variants: Ray accepts them, say the same, and open no port but SSH."""

from __future__ import annotations

import re
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ray._private.runtime_env.packaging import create_package

from common.config.load import load_config
from common.config.schema import Config
from common.config.tree import fields, tree_of
from tests.cluster.cluster_files import AWS, FILES, GCP, LOCAL, PLACEMENTS, ROOT, leaves, prepared, read

CLUSTER_CONFIGS = sorted((ROOT / "configs").glob("cluster_*.yaml"))


def of_name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", FILES, ids=of_name)
def test_ray_accepts_the_file(path: Path) -> None:
    assert prepared(path)["cluster_name"] == "prdp"


def test_the_cloud_files_differ_in_the_provider_only() -> None:
    trees = []
    for path in (AWS, GCP):
        tree = read(path)
        for key in ("provider", "auth"):
            del tree[key]
        for node_type in tree["available_node_types"].values():
            del node_type["node_config"]
        *command, package = tree.pop("head_setup_commands")[0].split()
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package)
        trees.append({**tree, "head_setup_commands": command})
    assert trees[0] == trees[1]


def test_the_file_for_machines_of_your_own_says_the_same() -> None:
    """Without node types, which Ray's local provider does not have: roles.txt names each machine's."""
    cloud, own = read(AWS), read(LOCAL)
    assert set(cloud) - set(own) == {"available_node_types", "head_node_type", "max_workers"}
    assert set(own) <= set(cloud)
    assert own["file_mounts"].pop("~/prdp/roles.txt") == "deploy/roles.txt"
    assert own["head_setup_commands"] == []
    stop, start = own["head_start_ray_commands"]
    own["head_start_ray_commands"] = [stop, start.removeprefix("export RAY_enable_autoscaler_v2=0; ")]
    for key in own.keys() - {"provider", "auth", "head_setup_commands"}:
        assert own[key] == cloud[key], key


def test_each_machine_of_your_own_has_a_role() -> None:
    own, cloud = read(LOCAL)["provider"], read(AWS)
    rows = [line.split() for line in (ROOT / "deploy/roles.txt").read_text().splitlines() if line[0] != "#"]
    assert {address for address, _ in rows} == {own["head_ip"], *own["worker_ips"]}
    assert {role for _, role in rows} == set(cloud["available_node_types"])


def test_labels_name_the_node_types_and_the_head_computes_nothing() -> None:
    for path in (AWS, GCP):
        tree = prepared(path)
        types = tree["available_node_types"]
        assert {name: node["labels"] for name, node in types.items()} == {
            name: {"role": name} for name in ("head", "learner", "actor", "reward")
        }
        assert types[tree["head_node_type"]]["resources"] == {"CPU": 0}
        assert sum(node["max_workers"] for node in types.values()) == tree["max_workers"]
        assert all(node["min_workers"] == 0 for node in types.values()), "an idle cluster is the head alone"


@pytest.mark.parametrize("path", CLUSTER_CONFIGS, ids=of_name)
@pytest.mark.parametrize("cluster", [AWS, GCP], ids=of_name)
def test_the_configurations_fit_the_machines_that_their_labels_choose(path: Path, cluster: Path) -> None:
    config = load_config(path)
    types = read(cluster)["available_node_types"]
    sections = {name: vars(config)[name] for name in PLACEMENTS}
    assert {section.labels["role"] for section in sections.values()} == set(types) - {"head"}
    counts = {
        "actors": config.actors.count,
        "learner": config.learner.workers,
        "reward_service": config.reward_service.replicas * len(config.embedded),
    }
    for name, section in sections.items():
        node = types[section.labels["role"]]
        there = node["resources"]
        fit = min(
            there["CPU"] // section.cpus, there["GPU"] // section.gpus if section.gpus else counts[name]
        )
        assert fit >= 1, f"{name} does not fit a node"
        assert -(-counts[name] // fit) <= node["max_workers"], f"{name} needs more nodes than there may be"
    assert config.ray.address == "auto"
    assert config.run_folder.is_absolute()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=of_name)
def test_a_configuration_for_clusters_can_be_submitted_as_it_is(path: Path) -> None:
    config = load_config(path)
    assert config.run_folder.is_absolute() == (config.ray.address == "auto")


@pytest.mark.parametrize("path", FILES, ids=of_name)
def test_no_setting_of_a_run_is_in_a_cluster_file(path: Path) -> None:
    sections = [node for node in fields(tree_of(Config)).values() if "properties" in node]
    settings = {name for section in sections for name in fields(section)} - {"labels", "name"}
    assert "micro_batch_size" in settings
    assert not settings & {str(leaf) for leaf in leaves(read(path))}


@pytest.mark.parametrize("path", FILES, ids=of_name)
def test_every_node_gets_the_token_and_the_pins(path: Path) -> None:
    mounts = read(path)["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    ours = {Path(source) for source in mounts.values()} - {Path("~/.ray/auth_token")}
    assert all((ROOT / source).exists() for source in ours)
    assert {"pyproject.toml", "constraints.txt", "deploy/node.sh", "deploy/environment.sh"} <= set(
        map(str, ours)
    )


@pytest.mark.parametrize("path", FILES, ids=of_name)
def test_only_ssh_is_open(path: Path) -> None:
    tree = read(path)
    assert "IpPermissions" not in tree["provider"].get("security_group", {})
    (_, start) = tree["head_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)
    assert not any("0.0.0.0" in str(leaf) for leaf in leaves(tree))


def test_packages_of_a_provider_do_not_contradict_the_pins() -> None:
    pins = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"
    ]
    by_name = {pin.name: pin.specifier for pin in pins}
    for path in (AWS, GCP):
        package = Requirement(read(path)["head_setup_commands"][0].split()[-1])
        assert by_name.get(package.name, package.specifier) == package.specifier


def environment(home: Path, commands: str) -> dict[str, str]:
    """What a shell of a node has in its environment after deploy/environment.sh and the commands."""
    script = f". {ROOT}/deploy/environment.sh; {commands} env -0"
    plain = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    shown = subprocess.run(["bash", "-c", script], env=plain, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in shown.stdout.split("\0") if line)


def test_a_nodes_shell_asks_for_the_token_and_gives_jobs_time_to_stop(tmp_path: Path) -> None:
    there = environment(tmp_path, "")
    assert there["RAY_AUTH_MODE"] == "token"
    assert int(there["RAY_JOB_STOP_WAIT_TIME_S"]) >= 600
    assert there["PATH"].startswith(f"{tmp_path}/prdp/.venv/bin:")
    assert there["PRDP_LABELS"] == ""


def test_a_jobs_folder_stays_first_where_bash_reads_the_file_again(tmp_path: Path) -> None:
    again = environment(
        tmp_path, f"PYTHONPATH=/job:$PYTHONPATH PATH=/own:$PATH; . {ROOT}/deploy/environment.sh;"
    )
    assert again["PYTHONPATH"] == f"/job:{tmp_path}/prdp"
    assert again["PATH"] == f"/own:{tmp_path}/prdp/.venv/bin:/usr/bin:/bin"


def test_a_login_shell_that_begins_with_another_path_finds_ray_too(tmp_path: Path) -> None:
    """`ray up` runs its commands by a login shell below another shell, and /etc/profile sets PATH anew."""
    again = environment(tmp_path, f"PATH=/usr/bin:/bin; . {ROOT}/deploy/environment.sh;")
    assert again["PATH"].startswith(f"{tmp_path}/prdp/.venv/bin:")


def test_a_machine_finds_its_role_by_its_name_or_address(tmp_path: Path) -> None:
    name = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "prdp").mkdir()
    roles = tmp_path / "prdp" / "roles.txt"
    roles.write_text(f"# comment\nother head\n{name} actor\n{name}2 reward\n")
    assert environment(tmp_path, "")["PRDP_LABELS"] == "role=actor"
    roles.write_text("other head\n")
    assert environment(tmp_path, "")["PRDP_LABELS"] == ""


def test_a_job_uploads_what_a_run_needs_and_little_else(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    with zipfile.ZipFile(package) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
    assert package.stat().st_size < 32_000_000
    assert {"train.py", "evaluate.py", "actors/pool.py", "reward_service/serve.yaml"} <= names
    assert {"models/tiny-sd/unet/diffusion_pytorch_model.safetensors", "configs/quickstart.yaml"} <= names
    needless = {"tests", "docs", "benchmarks", "studies", "runs", ".git"}
    assert not needless & {name.split("/")[0] for name in names}
    assert not [name for name in names if "_cache/" in name]
