"""The quickstarts, shortened: PRDP raises the reward of an embedded model on unseen prompts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from common.config.load import load_config
from driver.main import train
from driver.report.console import PlainConsole
from driver.report.intervals import compare
from driver.run.evaluations import load_evaluations

SHORT = (
    "run.epochs=12",
    "evaluation.prompts=64",
    "evaluation.every_epochs=12",
    "ray.dashboard=false",
    "display.mode=lines",
)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["quickstart", "quickstart_flow"])
def test_reward_rises_on_prompts_never_trained_on(tmp_path: Path, name: str) -> None:
    config = load_config(Path(f"configs/{name}.yaml"), [*SHORT, f"run.folder={tmp_path}"])
    assert train(config, PlainConsole(file=io.StringIO())) == 0
    evaluations = load_evaluations(config.run_folder)
    seen, other = evaluations[0].sets
    assert not set(seen.prompts) & set(other.prompts)
    rises = {
        (change.set_name, change.score): change.difference
        for change in compare(evaluations)
        if change.score == "reward"
    }
    unseen = rises[("unseen", "reward")]
    assert unseen is not None
    assert unseen.mean > 0
    assert unseen.excludes_zero, unseen
