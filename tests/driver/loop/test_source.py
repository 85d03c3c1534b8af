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
    ("staleness", "finished", "which"),
    [(1, 3, "epoch 4"), (2, 3, "epochs 4 to 5"), (2, 5, "epoch 6"), (5, 3, "epochs 4 to 6")],
)
def test_epochs_that_were_sampled_ahead_are_named(
    tmp_path: Path, staleness: int, finished: int, which: str
) -> None:
    line = lost_samples(make(tmp_path, staleness), finished)
    assert line is not None
    assert f"sampled ahead for {which} is lost" in line
    assert f"with the weights after epoch {finished}." in line


def test_nothing_is_lost_without_staleness_before_the_first_epoch_and_after_the_last(tmp_path: Path) -> None:
    assert not lost_samples(make(tmp_path, 0), 3)
    assert not lost_samples(make(tmp_path, 2), 0)
    assert not lost_samples(make(tmp_path, 2), 6)


def test_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    checkpoint = Checkpoint("PLACE", RunState("run", 3, 6, ""), "", {})
    lines = going_on(make(tmp_path, 1), ResumePoint("run", 3, checkpoint), reached=5)
    assert [line[:30] for line in lines] == [
        "Going on after epoch 3 from PL",
        "Epochs 4 to 5 had been finishe",
        "What was sampled ahead for epo",
    ]
