"""Runs whose numbers are not finite, or teach nothing: they stop, say why, and leave evidence."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import BadNumbersError, NothingLearnedError
from driver.main import train
from driver.report.console import PlainConsole
from driver.run.checkpoints import list_checkpoints, read_checkpoint
from driver.run.recordings import INSPECTION, open_recording
from tests.tiny_config import make_config

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_a_run_that_diverges_stops_with_evidence(tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = {
        "optimizer.learning_rate": 1e37,  # finite weights after the first update, and no finite output
        "objective.updates_per_epoch": 2,
        "guards": {"skipped_updates_in_a_row": 2},
        "run.epochs": 5,
        "evaluation.every_epochs": 5,
        "checkpoint.every_epochs": 1,
    }
    config = make_config(tiny_pipeline, tmp_path, settings)
    text = io.StringIO()
    with pytest.raises(BadNumbersError) as caught:
        train(config, PlainConsole(file=text, width=200))
    shown, reason = text.getvalue(), str(caught.value)
    assert "2 updates in a row were skipped" in reason
    assert "not finite" in reason
    assert "The last checkpoint from before them: there is none" in reason
    assert "ALARM bad_numbers, epoch 1: 1 updates skipped" in shown
    saved = open_recording(config.run_folder / "inspection", INSPECTION)
    assert saved.epochs == [1, 2]
    (first, *_) = saved.read_epoch(2)
    assert first.trajectory.stamp.version == 1
    assert not np.isfinite(first.trajectory.log_ratio).all()
    newest = read_checkpoint(list_checkpoints(config.run_folder)[-1])
    assert newest.state.epoch == 2
    assert json.loads(newest.files["learner.json"])["version"] == 1


def test_a_run_whose_reward_never_tells_images_apart_says_so_and_stops(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    settings = {
        "rewards": {"flat": {"scorer": "tests.reward_service.scorers:Constant"}},
        "guards": {"epochs_without_learning": 2},
        "run.epochs": 5,
        "evaluation.every_epochs": 5,
    }
    config = make_config(tiny_pipeline, tmp_path, settings)
    text = io.StringIO()
    with pytest.raises(NothingLearnedError, match="2 epochs in a row"):
        train(config, PlainConsole(file=text, width=200))
    assert "ALARM nothing_learned, epoch 1" in text.getvalue()
    newest = read_checkpoint(list_checkpoints(config.run_folder)[-1])
    assert newest.state.epoch == 2
    assert json.loads(newest.files["learner.json"])["version"] == 0
