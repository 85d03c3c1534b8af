"""Whoever loses the driver ends, also what is stopped; and a start that fails leaves nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from benchmarks.chaos_run import Running
from driver.observe.status import KINDS, SHARED
from tests.faults.conftest import LIMIT_S, MakeFaulty, Start, at, seconds_until_gone

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(2 * LIMIT_S)]

SHARED_KINDS = {KINDS[name] for name in SHARED}


def followed(running: Running, there: Callable[[], object]) -> set[psutil.Process]:
    """Every process that the run has started, and they have, until it is there or has ended."""
    family: set[psutil.Process] = set()
    while running.process.poll() is None and not there():
        with suppress(psutil.NoSuchProcess):
            family.update(psutil.Process(running.process.pid).children(recursive=True))
        time.sleep(0.05)
    return family


def open_doors(pid: int) -> int:
    """At how many ports a process waits for connections from other machines."""
    own = psutil.Process(pid).net_connections("tcp")
    doors = [one.laddr.ip for one in own if one.status == psutil.CONN_LISTEN]
    return sum(not address.startswith(("127.", "::1")) for address in doors)


def test_nothing_outlives_a_killed_driver(faulty: MakeFaulty, start: Start) -> None:
    """Not even an actor, a rank and a replica that are stopped; and ranks listen on loopback alone."""
    running = start(faulty(learner__workers=2, evaluation__every_epochs=6))
    family = followed(running, lambda: any(map(at(0, "sampling"), running.status())))
    (status,) = running.status()
    pids = {process.kind: process.pid for process in status.processes}
    assert open_doors(pids["learner rank"]) == open_doors(pids["actor"])
    for kind in ("actor", "learner rank", "reward replica"):
        os.kill(pids[kind], signal.SIGSTOP)
    assert {process.pid for process in status.processes} <= {process.pid for process in family}
    running.process.kill()
    running.process.wait()
    print(f"{len(family)} processes were gone after {seconds_until_gone(family):.1f} s")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One that drivers join, and that outlives them."""
    head = {"num_cpus": 4, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def test_nothing_of_a_killed_driver_stays_in_a_cluster(
    cluster: Cluster, faulty: MakeFaulty, start: Start
) -> None:
    """Neither actors and ranks nor the applications of its rewards."""
    running = start(faulty(ray__address=cluster.address))
    status = running.until(at(1, "sampling"), LIMIT_S)
    own = {psutil.Process(one.pid) for one in status.processes if one.kind not in SHARED_KINDS}
    assert {"actor", "learner rank", "reward replica"} <= {one.kind for one in status.processes}
    running.process.kill()
    running.process.wait()
    print(f"{len(own)} processes were gone after {seconds_until_gone(own):.1f} s")


def test_a_failed_start_leaves_nothing(faulty: MakeFaulty, start: Start) -> None:
    broken = {"jpeg": {"scorer": "jpeg_compressibility"}, "broken": {"scorer": f"{__name__}:Broken"}}
    running = start(faulty(rewards=broken))
    family = followed(running, lambda: False)
    assert running.wait(LIMIT_S) == 2, running.shown
    assert "no weights" in running.shown
    assert len(family) > len(broken)
    print(f"{len(family)} processes were gone after {seconds_until_gone(family):.1f} s")


class Broken:
    """A scorer that cannot be built."""

    version = "1"
    digest = ""

    def __init__(self) -> None:
        raise ValueError("no weights")

    def score(self, prompts: Sequence[str], images: Any) -> list[float]:
        """Never asked."""
        return [0.0] * len(prompts)
