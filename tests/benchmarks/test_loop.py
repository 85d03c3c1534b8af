"""The loop's two sides: one process without Ray, and both in turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.loop import OneProcess, measure_loop
from common.config.schema import Config
from driver.run.prompts import PromptStream, open_prompts
from tests.tiny_config import make_config


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> Config:
    """Two prompts an epoch."""
    return make_config(
        tiny_pipeline, tmp_path, {"actors.cpus": 0.1, "learner.cpus": 0.1, "reward_service.cpus": 0.1}
    )


def test_one_process_trains_an_epoch_a_call(config: Config) -> None:
    stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)
    one = OneProcess.build(config, stream)
    stamps = [one.weights.stamp]
    for number in range(2):
        one.epoch(number)
        stamps.append(one.weights.stamp)
    assert [stamp.version for stamp in stamps] == [0, 1, 2]
    assert len({stamp.digest for stamp in stamps}) == 3


@pytest.mark.integration
@pytest.mark.slow
def test_epochs_on_ray_and_in_one_process_take_turns(config: Config) -> None:
    found = measure_loop(config, threads=1, repeats=2, warm_ups=1)
    assert found.comparison.items == 8
    sides = (found.comparison.ours, found.comparison.bare, found.single_thread)
    assert [len(side.wall) for side in sides] == [2, 2, 2]
    assert 0.01 < found.comparison.ratio < 100
    assert len(found.ray_idle_s) == 2
    assert min(found.ray_idle_s) >= 0.0
    assert 0.0 < found.snapshot_share < 1.0
