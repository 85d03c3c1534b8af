"""The cheap calls of the Python interface; the others are run by the commands' tests and the page's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from common.config.load import config_to_yaml
from common.errors import CheckpointError, ConfigError, PromptSetError, RewardError, RunFolderError
from driver import api
from tests.tiny_config import make_config


def test_a_configuration_is_loaded_with_changes(tiny_pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(config_to_yaml(make_config(tiny_pipeline, tmp_path)))
    assert api.load(file, changes=["run.epochs=7"]).run.epochs == 7
    with pytest.raises(ConfigError, match="epochs"):
        api.load(file, changes=["run.epoch=7"])
    with pytest.raises(ConfigError, match="checkpoint"):
        api.load()
    with pytest.raises(CheckpointError, match="nowhere"):
        api.load(checkpoint="nowhere")


def test_wrong_arguments_are_told_as_such(tiny_pipeline: Path, tmp_path: Path) -> None:
    config: Any = make_config(tiny_pipeline, tmp_path)
    pixels: Any = np.zeros((1, 8, 8, 3), np.uint8)
    for count in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="images"):
            api.sample("a cat", config=config, images=count)  # type: ignore[arg-type]
    prompts: Any = ["a cat"]
    calls: dict[str, list[Callable[[], object]]] = {
        "prompt": [lambda: api.sample(prompts, config=config), lambda: api.score(prompts, pixels, config)],
        "checkpoint": [lambda: api.sample("a cat", config), lambda: api.evaluate(config)],
        "changes": [lambda: api.load("a.yaml", changes="run.epochs=2")],
        "config": [lambda: api.train("a.yaml"), lambda: api.load(config)],  # type: ignore[arg-type]
    }
    for name, wrong in calls.items():
        for call in wrong:
            with pytest.raises(ConfigError, match=f"^{name} ") as caught:
                call()
            assert len(str(caught.value)) < 120
    unfit: list[Any] = [[pixels[0]], pixels / 2.0, pixels[0]]
    for images in unfit:
        with pytest.raises(RewardError, match="uint8"):
            api.score("a cat", images, config)


def test_a_configuration_is_checked_and_nothing_is_begun(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tiny_pipeline, tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(config_to_yaml(config))
    assert train.main([str(file), "--check"]) == 0
    assert config.run.name in capsys.readouterr().out
    assert not config.run_folder.exists()
    with pytest.raises(ConfigError, match=r"prompts\.unseen has 4 prompts"):
        api.check(
            make_config(tiny_pipeline, tmp_path, {"evaluation.prompts": 5, "evaluation.grid_prompts": 1})
        )
    with pytest.raises(PromptSetError, match="nowhere"):
        api.check(make_config(tiny_pipeline, tmp_path, {"prompts.train": "nowhere.txt"}))


def test_images_are_scored_in_a_cell_of_a_notebook(tiny_pipeline: Path, tmp_path: Path) -> None:
    config = make_config(tiny_pipeline, tmp_path, {"gold": {"other": {"scorer": "jpeg_incompressibility"}}})
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)

    async def cell() -> None:
        loop = asyncio.get_running_loop()
        score = api.score("a cat", images, config)
        np.testing.assert_allclose(score.rewards, -score.parts["other"])
        assert asyncio.get_running_loop() is loop

    asyncio.run(cell())


def test_a_run_that_was_never_begun_has_no_history(tiny_pipeline: Path, tmp_path: Path) -> None:
    config = make_config(tiny_pipeline, tmp_path)
    assert api.checkpoints(config) == []
    with pytest.raises(RunFolderError, match=str(config.run_folder)):
        api.history(config)


def test_the_page_s_configuration_is_sound() -> None:
    names: dict[str, Any] = {}
    first = Path("docs/python.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(first, names)
    assert names["config"].run.epochs == 2
