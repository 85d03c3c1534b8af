"""Kill processes of a running run, one kind after the other: it goes on by itself to the same bits."""

from __future__ import annotations

import pytest

from benchmarks.chaos_run import Outcome
from tests.faults.conftest import LIMIT_S, MakeFaulty, Start, at, kill

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


def test_a_run_survives_the_death_of_each_of_its_processes(
    whole: Outcome, faulty: MakeFaulty, start: Start
) -> None:
    running = start(faulty())
    for epoch, phase, kind in SCHEDULE:
        kill(running.until(at(epoch, phase), LIMIT_S), kind)
    assert running.wait(LIMIT_S) == 0, running.shown
    assert running.shown.count("The learner is started again") == 3, running.shown
    assert "differently" not in running.shown
    assert whole.differences(Outcome.of(running.config)) == []
