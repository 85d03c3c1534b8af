"""Kill processes of a running run, one kind after the other: it goes on by itself to the same bits."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest

from benchmarks.chaos_run import Outcome, Running
from tests.faults.conftest import LIMIT_S, MakeFaulty, Start, at, kill, seconds_until_gone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

SCHEDULE = (
    (0, "sampling", "learner rank"),
    (1, "learning", "learner rank"),
    (2, "sampling", "actor"),
    (2, "evaluating", "Serve controller"),
    (3, "sampling", "reward replica"),
    (4, "publishing", "learner rank"),
)
"""Finished epochs, at least, and phase when each kind of process is killed; the first before any snapshot."""


def test_a_run_survives_an_actor_and_a_learner(whole: Outcome, faulty: MakeFaulty, start: Start) -> None:
    running = start(faulty())
    kill(running.until(at(1, "sampling"), LIMIT_S), "actor")
    kill(running.until(at(2, "learning"), LIMIT_S), "learner rank")
    assert running.wait(LIMIT_S) == 0, running.shown
    assert running.shown.count("The learner is started again") == 1, running.shown
    assert "differently" not in running.shown
    assert whole.differences(Outcome.of(running.config)) == []


@pytest.mark.slow
def test_a_killed_driver_goes_on_from_its_checkpoint(
    whole: Outcome, faulty: MakeFaulty, start: Start
) -> None:
    running = start(faulty())
    running.until(at(3, "sampling"), LIMIT_S)
    family = set(psutil.Process(running.process.pid).children(recursive=True))
    running.process.kill()
    running.process.wait()
    seconds_until_gone(family)
    again = start(running.config)
    assert again.wait(LIMIT_S) == 0, again.shown
    assert "Going on after epoch 2" in again.shown
    assert "differently" not in again.shown
    assert whole.differences(Outcome.of(again.config)) == []


def kill_loading_learner(running: Running) -> None:
    """Kill the learner's process in its constructor, where it loads the model."""
    end_at, driver = time.monotonic() + LIMIT_S, psutil.Process(running.process.pid)
    while time.monotonic() < end_at and running.process.poll() is None:
        for process in driver.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::LearnerRank") or "ray::LearnerRank" in process.cmdline():
                    os.kill(process.pid, signal.SIGKILL)
                    return
        time.sleep(0.05)
    raise TimeoutError(f"No learner was started:\n{running.shown}")


@pytest.mark.slow
def test_a_run_survives_the_death_of_each_of_its_processes(
    whole: Outcome, faulty: MakeFaulty, start: Start
) -> None:
    running = start(faulty())
    kill_loading_learner(running)
    for epoch, phase, kind in SCHEDULE:
        kill(running.until(at(epoch, phase), LIMIT_S), kind)
    assert running.wait(LIMIT_S) == 0, running.shown
    assert running.shown.count("The learner is started again") == 4, running.shown
    assert "differently" not in running.shown
    assert whole.differences(Outcome.of(running.config)) == []
