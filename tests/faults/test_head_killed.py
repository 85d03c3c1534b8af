"""The cluster's head dies, and with it its control process: the same command goes on, on another cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ray.cluster_utils import Cluster

from benchmarks.chaos_run import Outcome
from driver.run.checkpoints import list_checkpoints, read_checkpoint
from tests.faults.conftest import EPOCHS, LIMIT_S, MakeFaulty, Start, at

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

NOTICED_S = "5"
END_LIMIT_S = 60.0
HEAD = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}


@contextmanager
def cluster_of_one() -> Iterator[Cluster]:
    """A head alone, which ends with the context where it has not died before."""
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_the_same_command_goes_on_elsewhere(
    whole: Outcome, faulty: MakeFaulty, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's own is a minute.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", NOTICED_S)
    with cluster_of_one() as cluster:
        first = start(faulty(ray__address=cluster.address))
        first.until(at(3, "learning"), LIMIT_S)
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        assert first.wait(END_LIMIT_S) != 0
    kept = read_checkpoint(list_checkpoints(first.config.run_folder)[-1]).state.epoch
    assert 2 <= kept < EPOCHS
    with cluster_of_one() as other:
        again = start(faulty(ray__address=other.address))
        assert again.wait(LIMIT_S) == 0, again.shown
    assert f"Going on after epoch {kept}" in again.shown
    assert whole.differences(Outcome.of(again.config)) == []
