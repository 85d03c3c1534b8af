"""The driver killed or interrupted: the same command goes on, as the same run, to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import mlflow
import psutil
import pytest

from benchmarks.chaos_run import Outcome
from common.config.schema import Config
from driver.run.checkpoints import list_checkpoints, read_checkpoint
from tests.faults.conftest import EPOCHS, LIMIT_S, MakeFaulty, Start, at, kill

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

END_LIMIT_S = 30.0


def last_epoch(config: Config) -> int:
    """Of the newest checkpoint."""
    return read_checkpoint(list_checkpoints(config.run_folder)[-1]).state.epoch


def test_the_same_command_goes_on(whole: Outcome, faulty: MakeFaulty, start: Start) -> None:
    """Killed before the first checkpoint, stuck, and interrupted; and a learner without snapshots dies."""
    config = faulty(learner__snapshots=False, actors__timeout_s=5.0)
    first = start(config)
    first.until(at(0, "starting"), LIMIT_S)
    # It stands still until it is seen that nobody else may train there.
    os.kill(first.process.pid, signal.SIGSTOP)
    own_file = str(config.run_folder.parent / "test.yaml")
    second = subprocess.run(
        [sys.executable, "train.py", own_file], timeout=LIMIT_S, check=False, capture_output=True, text=True
    )
    os.kill(first.process.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert f"pid {first.process.pid}" in second.stderr

    first.until(lambda now: now.epoch == 1, LIMIT_S)
    first.end()
    assert list_checkpoints(config.run_folder) == []

    stuck = start(config)
    sampling = stuck.until(at(1, "sampling"), LIMIT_S)
    (actor,) = (process.pid for process in sampling.processes if process.kind == "actor")
    os.kill(actor, signal.SIGSTOP)
    assert stuck.wait(LIMIT_S) == 2, stuck.shown
    assert "begins again, as the same run" in stuck.shown
    assert "actors.timeout_s = 5 " in stuck.shown
    assert 1 <= last_epoch(config) < EPOCHS
    with suppress(ProcessLookupError):
        # A stopped process does not notice that its node has ended.
        os.kill(actor, signal.SIGKILL)

    again = start(config)
    kill(again.until(at(3, "learning"), LIMIT_S), "learner rank")
    again.until(lambda _: "Back to the checkpoint after epoch" in again.shown, LIMIT_S)
    again.until(at(3, "sampling"), LIMIT_S)
    children = psutil.Process(again.process.pid).children(recursive=True)
    again.process.send_signal(signal.SIGINT)
    assert again.wait(LIMIT_S) == 130, again.shown
    assert "The same command goes on from there" in again.shown
    assert "Traceback" not in again.shown
    deadline = time.monotonic() + END_LIMIT_S
    while any(child.is_running() for child in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [child for child in children if child.is_running()]
    reached = last_epoch(config)
    assert 3 <= reached < EPOCHS

    last = start(config)
    assert last.wait(LIMIT_S) == 0, last.shown
    assert f"Going on after epoch {reached}" in last.shown
    assert whole.differences(Outcome.of(config)) == []
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'prdp'")
    assert len(client.search_runs([experiment.experiment_id])) == 1
