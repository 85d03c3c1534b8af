"""Kill the learner's process: it is started again inside the run, and the run ends with the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from benchmarks.chaos_run import Outcome, Running
from common.config.schema import Config
from driver.status import RunStatus
from tests.faults.conftest import LIMIT_S, MakeFaulty

pytestmark = pytest.mark.faults

Start = Callable[[Config], Running]


def kill(status: RunStatus, kind: str) -> None:
    """Kill every process of a kind."""
    victims = [process.pid for process in status.processes if process.kind == kind]
    assert victims, status
    for victim in victims:
        os.kill(victim, signal.SIGKILL)


def test_it_goes_on_from_its_snapshot(whole: Outcome, faulty: MakeFaulty, start: Start) -> None:
    """Killed before the first snapshot, in an update, in a checkpoint, and while weights are published."""
    running = start(faulty())
    for epoch, phase in ((0, "sampling"), (1, "learning"), (2, "checkpointing"), (4, "publishing")):
        status = running.until(lambda now, at=(epoch, phase): at == (now.epoch, now.phase), LIMIT_S)
        kill(status, "learner rank")
    assert running.wait(LIMIT_S) == 0, running.shown
    assert running.shown.count("The learner is started again") == 4, running.shown
    assert whole.differences(Outcome.of(running.config)) == []


def test_without_snapshots_it_goes_back_to_the_checkpoint(
    whole: Outcome, faulty: MakeFaulty, start: Start
) -> None:
    running = start(faulty(learner__snapshots=False))
    kill(running.until(lambda now: now.epoch == 3 and now.phase == "learning", LIMIT_S), "learner rank")
    assert running.wait(LIMIT_S) == 0, running.shown
    assert "Back to the checkpoint after epoch 2" in running.shown
    assert "differently" not in running.shown
    assert whole.differences(Outcome.of(running.config)) == []
