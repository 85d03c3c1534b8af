"""One of two learner ranks is killed while they learn: both are started anew and learn the same bits."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from benchmarks.chaos_run import Outcome
from tests.faults.conftest import LIMIT_S, MakeFaulty, Start, at

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SETTINGS: dict[str, Any] = {
    "run__epochs": 3,
    "run__name": "undisturbed",
    "learner__workers": 2,
    "evaluation__every_epochs": 3,
}


@pytest.mark.timeout(2.5 * LIMIT_S)
def test_a_run_survives_the_death_of_one_of_two_ranks(faulty: MakeFaulty, start: Start) -> None:
    whole = start(faulty(**SETTINGS))
    assert whole.wait(LIMIT_S) == 0, whole.shown
    disturbed = start(faulty(**{**SETTINGS, "run__name": "disturbed"}))
    status = disturbed.until(at(1, "learning"), LIMIT_S)
    ranks = [process.pid for process in status.processes if process.kind == "learner rank"]
    assert len(ranks) == SETTINGS["learner__workers"]
    os.kill(ranks[-1], signal.SIGKILL)
    assert disturbed.wait(LIMIT_S) == 0, disturbed.shown
    assert disturbed.shown.count("The learner is started again") == 1, disturbed.shown
    assert "differently" not in disturbed.shown
    assert Outcome.of(whole.config).differences(Outcome.of(disturbed.config)) == []
