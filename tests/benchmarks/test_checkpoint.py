"""The two sides of the checkpoint benchmark."""

from __future__ import annotations

from pathlib import Path

from benchmarks.checkpoint import Saves, figures_of, measure_epochs, measure_pause, measure_stages
from benchmarks.loop import OneProcess
from common.storage import LocalStorage
from driver.run.checkpoints import Checkpoints
from driver.run.prompts import PromptStream, open_prompts
from learner.state import export_state
from tests.tiny_config import make_config


def test_both_sides_write_and_are_timed(tiny_pipeline: Path, tmp_path: Path) -> None:
    config = make_config(tiny_pipeline, tmp_path)
    one = OneProcess.build(config, PromptStream(open_prompts(config.prompts.train), config.run.seed))
    one.epoch(0)
    stages = measure_stages(one, 1)
    assert stages.nbytes == sum(len(data) for data in export_state(one.learner).values())
    folder = tmp_path / "written"
    saves = Saves(config, folder, {"large.bin": bytes(8_000_000)})
    pause = measure_pause("pause", saves, repeats=2, warm_ups=1)
    assert Checkpoints(LocalStorage(folder)).epochs() == [6]
    assert pause.ratio > 1.0
    epochs = measure_epochs(one, saves, repeats=1, warm_ups=1)
    assert Checkpoints(LocalStorage(folder)).epochs() == [10]
    assert min(*epochs.ours.wall, *epochs.bare.wall) > 0.0
    assert "% of an epoch" in figures_of(stages, [pause], epochs)["the checkpoint waited for"]
