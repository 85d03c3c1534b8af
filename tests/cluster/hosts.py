"""Several hosts on one machine: network namespaces on one bridge, an SSH server and own processes in each.

Everything stands in the namespaces of this process (see `make test-cluster`): its bridge, the hosts' links
and processes end with it, whatever happens, and no traffic leaves them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

INSIDE_VARIABLE = "PRDP_OWN_NAMESPACES"
ROOT = Path(__file__).parents[2]
VENV = Path(sys.prefix)
NETWORK = "10.77.0"
OPERATOR_ADDRESS = f"{NETWORK}.1"
SSH_LIMIT_S = 30.0
NEEDED = ("ip", "unshare", "sshd", "ssh", "ssh-keygen", "rsync")
MISSING = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
NEEDS_HOSTS = (
    pytest.mark.cluster,
    pytest.mark.skipif(
        INSIDE_VARIABLE not in os.environ,
        reason="needs namespaces of its own: run `make test-cluster` as root, where they are permitted",
    ),
    pytest.mark.skipif(bool(MISSING), reason=f"programs are missing: {', '.join(MISSING)}"),
)
"""The marks of a test that brings up hosts."""


@dataclass(frozen=True)
class Host:
    """A running host. process: of `unshare`, with which all processes of the host end."""

    name: str
    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End all its processes at once, as when its power fails."""
        self.process.kill()
        self.process.wait()

    @property
    def home(self) -> Path:
        """Its home folder, seen from here."""
        first = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0]
        return Path(f"/proc/{first}/root/mnt/home")


def run(*command: str) -> None:
    """Run a command; raises where it fails."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def make_network() -> None:
    """A bridge in this process's own network namespace: where the operator sits."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "lan", "type", "bridge")
    run("ip", "address", "add", f"{OPERATOR_ADDRESS}/24", "dev", "lan")
    run("ip", "link", "set", "lan", "up")
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")


def _plug_in(name: str, address: str) -> None:
    run("ip", "netns", "add", name)
    run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
    run("ip", "link", "set", f"to-{name}", "master", "lan", "up")
    inside = ("ip", "-n", name)
    run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "link", "set", "lo", "up")
    # Nothing is sent there: Ray finds a node's own address by its default route.
    run(*inside, "route", "add", "default", "via", OPERATOR_ADDRESS)


@contextmanager
def start_hosts(names: tuple[str, ...], key: Path, seed: Path, logs: Path) -> Iterator[dict[str, Host]]:
    """Hosts by name, their SSH servers answering. key: of the operator; seed: copied into each home folder.

    Folders that hold the project are hidden from them, so what they run is what was sent to them.
    """
    hidden = {str(ROOT), str(VENV.parent)}
    with ExitStack() as stack:
        hosts = {}
        for number, name in enumerate(names, start=10):
            address = f"{NETWORK}.{number}"
            _plug_in(name, address)
            stack.callback(run, "ip", "netns", "delete", name)
            log = stack.enter_context((logs / f"{name}.sshd.log").open("wb"))
            separate = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
            script = (str(Path(__file__).with_name("host.sh")), name, str(VENV), f"{key}.pub", str(seed))
            process = subprocess.Popen(
                ("ip", "netns", "exec", name, *separate, "bash", *script, *hidden),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_plain(os.environ),
            )
            hosts[name] = Host(name, address, process)
            stack.callback(hosts[name].kill)
        for host in hosts.values():
            _await_ssh(host, key)
        yield hosts


def _plain(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in ("PATH", "LANG", "TERM") if name in environ}


def ssh(host: Host, key: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a host as a person would."""
    options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
    call = ("ssh", "-i", str(key), *options, f"root@{host.address}", command)
    return subprocess.run(call, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def _await_ssh(host: Host, key: Path) -> None:
    end_at = time.monotonic() + SSH_LIMIT_S
    while ssh(host, key, "true").returncode:
        assert host.process.poll() is None, f"{host.name} did not start; see its log"
        assert time.monotonic() < end_at, f"{host.name} does not answer SSH"
        time.sleep(0.2)
