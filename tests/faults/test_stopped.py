"""Processes that are stopped and not dead: they are named; woken, they go on to the same bits."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress

import psutil
import pytest

from benchmarks.chaos_run import Outcome
from driver.run.checkpoints import list_checkpoints, read_checkpoint
from tests.faults.conftest import LIMIT_S, MakeFaulty, Start, at

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

SCHEDULE = (
    (1, "sampling", "actor", r"actor 0 \(pid {pid}, node \w+\)"),
    (2, "learning", "learner rank", r"learner rank 0 \(pid {pid}, node \w+\)"),
    (3, "sampling", "reward replica", "reward jpeg has '"),
)
"""Finished epochs, at least, and phase when each kind is stopped, and how it is named."""


def test_a_run_with_processes_that_are_stopped_for_a_while_ends_with_the_same_bits(
    whole: Outcome, faulty: MakeFaulty, start: Start
) -> None:
    running = start(faulty())
    for epoch, phase, kind, named in SCHEDULE:
        status = running.until(at(epoch, phase), LIMIT_S)
        (pid,) = (process.pid for process in status.processes if process.kind == kind)
        known = len(running.shown)
        os.kill(pid, signal.SIGSTOP)
        line = re.compile(f"Nothing has moved.*{named.format(pid=pid)}")
        running.until(lambda _, known=known, line=line: line.search(running.shown[known:]), LIMIT_S)
        # Serve may have replaced the replica.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert running.wait(LIMIT_S) == 0, running.shown
    assert "is started again" not in running.shown
    assert whole.differences(Outcome.of(running.config)) == []


def test_a_rank_that_stays_stopped_ends_the_run_with_its_name_and_without_loss(
    whole: Outcome, faulty: MakeFaulty, start: Start
) -> None:
    config = faulty(learner__timeout_s=20.0)
    stuck = start(config)
    status = stuck.until(at(3, "learning"), LIMIT_S)
    (pid,) = (process.pid for process in status.processes if process.kind == "learner rank")
    os.kill(pid, signal.SIGSTOP)
    assert stuck.wait(LIMIT_S) == 2, stuck.shown
    assert re.search(rf"no answer from learner rank 0 \(pid {pid}, node \w+\)", stuck.shown)
    assert not psutil.pid_exists(pid)
    assert read_checkpoint(list_checkpoints(config.run_folder)[-1]).state.epoch >= 3
    again = start(config)
    assert again.wait(LIMIT_S) == 0, again.shown
    assert whole.differences(Outcome.of(config)) == []
