"""The operator's side of a cluster test: files, commands, and waiting for what they lead to."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.cluster_files import LOCAL, read
from tests.cluster.hosts import ROOT, VENV, Host, run

DASHBOARD = "http://127.0.0.1:8265"
INSTALLED_BY = ("constraints.txt", "pyproject.toml", "deploy/node.sh")
"""What node.sh's mark is the digest of."""
LOOK_S = 3.0
ROLES = {
    "head": "head",
    "learner": "learner",
    "actor-1": "actor",
    "actor-2": "actor",
    "reward": "reward",
}


@dataclass(frozen=True)
class Desk:
    """A folder with the operator's home, key and cluster file."""

    folder: Path

    @property
    def key(self) -> Path:
        """The private SSH key."""
        return self.folder / "key"

    @property
    def seed(self) -> Path:
        """What each host's home folder holds at first: the mark that the environment is installed."""
        return self.folder / "seed"

    @property
    def cluster_file(self) -> Path:
        """deploy/local.yaml with the addresses of these hosts."""
        return self.folder / "cluster.yaml"

    @property
    def environ(self) -> dict[str, str]:
        """As on a laptop where the token lies in ~/.ray and the project's environment is active."""
        return {
            "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder),
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_API_SERVER_ADDRESS": DASHBOARD,
            "OMP_NUM_THREADS": "1",
            "TERM": "dumb",
        }

    @property
    def small(self) -> tuple[str, ...]:
        """Settings that make a run of the embedded models short."""
        return (
            "sampling.prompts_per_epoch=4",
            "sampling.images_per_prompt=4",
            "evaluation.prompts=4",
            "evaluation.grid_prompts=2",
            "evaluation.every_epochs=1000",
            "checkpoint.every_epochs=1000",
            "display.line_seconds=5",
        )

    def prepare(self) -> None:
        """Write key, token and seed."""
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        token = self.folder / "home" / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text(secrets.token_hex(32))
        content = b"".join((ROOT / name).read_bytes() for name in INSTALLED_BY)
        (self.seed / "prdp").mkdir(parents=True)
        (self.seed / "prdp" / "installed").write_text(hashlib.sha256(content).hexdigest() + "  -\n")

    def write_cluster_file(self, hosts: Mapping[str, Host]) -> None:
        """deploy/local.yaml for these hosts: its provider and auth, and roles.txt, nothing else."""
        tree = read(LOCAL)
        workers = [host.address for name, host in hosts.items() if name != "head"]
        tree["cluster_name"] = self.folder.name
        tree["provider"] |= {"head_ip": hosts["head"].address, "worker_ips": workers}
        tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.key)}
        roles = self.folder / "roles.txt"
        roles.write_text("".join(f"{host.address} {ROLES[name]}\n" for name, host in hosts.items()))
        tree["file_mounts"]["~/prdp/roles.txt"] = str(roles)
        self.cluster_file.write_text(yaml.safe_dump(tree))

    def call(self, *command: str, limit_s: float = 120.0, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder; its output is in the result."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
        )

    def output(self, *command: str, limit_s: float = 120.0) -> str:
        """What a command prints; fails where it fails."""
        done = self.call(*command, limit_s=limit_s)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
        return done.stdout

    def listed(self, what: str) -> list[dict[str, Any]]:
        """`ray list` through the forwarded dashboard, as rows."""
        text = self.output("ray", "list", what, "--address", DASHBOARD, "--format", "yaml", "--detail")
        rows: list[dict[str, Any]] = yaml.safe_load(text.partition("---\n")[2].partition("\n...")[0]) or []
        return rows

    def alive(self, class_part: str) -> list[dict[str, Any]]:
        """Living actors of Ray whose class name contains a text."""
        living = [row for row in self.listed("actors") if row["state"] == "ALIVE"]
        return [row for row in living if class_part in row["class_name"]]

    def living_nodes(self) -> list[dict[str, Any]]:
        """Nodes that Ray counts on."""
        return [row for row in self.listed("nodes") if row["state"] == "ALIVE"]

    def submit(self, name: str, *settings: str) -> None:
        """Submit a small run as a job of this name, without waiting."""
        words = ("ray", "job", "submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--")
        self.output(*words, "python", "train.py", "configs/cluster_quickstart.yaml", *settings)

    def logs(self, job: str) -> str:
        """What a job has printed so far."""
        return self.output("ray", "job", "logs", job)

    def ended(self, job: str) -> bool:
        """Whether a job neither waits nor runs."""
        return not re.search("PENDING|RUNNING", self.output("ray", "job", "status", job))

    def succeeded(self, job: str) -> bool:
        """Whether a job's process returned 0."""
        return "succeeded" in self.output("ray", "job", "status", job)

    def dashboard(self) -> AbstractContextManager[None]:
        """`ray dashboard`: the head's dashboard at this machine's own loopback address."""
        return self._beside("ray", "dashboard", str(self.cluster_file))

    def forwarded(self, host: Host) -> AbstractContextManager[None]:
        """The same by SSH, for a host without a cluster file."""
        options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-N")
        port = DASHBOARD.rsplit(":", 1)[1]
        forward = ("-L", f"{port}:127.0.0.1:{port}")
        return self._beside("ssh", "-i", str(self.key), *options, *forward, f"root@{host.address}")

    @contextmanager
    def _beside(self, *command: str) -> Iterator[None]:
        with (self.folder / "dashboard.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                wait_until(lambda: self.call("ray", "job", "list").returncode == 0, "the dashboard", 60)
                yield
            finally:
                process.terminate()
                process.wait(30)


def wait_until(done: Callable[[], bool], what: str, limit_s: float) -> None:
    """Fails where it does not come true in time."""
    end_at = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end_at, f"{limit_s:g} s in vain: {what}"
        # Each look starts a command, which takes a core for seconds from the hosts on this machine.
        time.sleep(LOOK_S)
