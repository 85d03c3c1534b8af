"""Which samples are lost where a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config.schema import Config
from driver.loop.source import lost_samples
from driver.main import going_on
from driver.run.checkpoints import Checkpoint, RunState
from driver.run.folder import ResumePoint
from tests.tiny_config import make_config


def make(folder: Path, staleness: int, **others: Any) -> Config:
    return make_config(
        Path("no/model"), folder, {"run.epochs": 6, "data": {"max_staleness": staleness, **others}}
    )


@pytest.mark.parametrize(
    ("staleness", "finished", "epochs"),
    [(1, 3, "4"), (2, 3, "4 to 5"), (2, 5, "6"), (5, 3, "4 to 6"), (0, 3, ""), (2, 0, ""), (2, 6, "")],
)
def test_epochs_that_were_sampled_ahead_are_named(
    tmp_path: Path, staleness: int, finished: int, epochs: str
) -> None:
    line = lost_samples(make(tmp_path, staleness), finished)
    assert bool(line) == bool(epochs)
    assert line is None or f" {epochs} is lost" in line


def test_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    checkpoint = Checkpoint("PLACE", RunState("run", 3, ""), "", {})
    lines = going_on(make(tmp_path, 1), ResumePoint("run", 3, checkpoint), reached=5)
    for line, words in zip(lines, ("3 from PLACE", "4 to 5", "sampled ahead"), strict=True):
        assert words in line
