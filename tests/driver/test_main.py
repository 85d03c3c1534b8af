"""What is checked before Ray starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, ModelError, PrdpError, PromptSetError, RecordingError, RewardError
from driver.loop.cluster import check_room, missing_room
from driver.main import check_device, check_inputs
from tests.tiny_config import make_config


def test_sound_inputs_are_opened(tiny_pipeline: Path, tmp_path: Path) -> None:
    inputs = check_inputs(make_config(tiny_pipeline, tmp_path))
    assert (len(inputs.train), len(inputs.unseen), inputs.recording) == (6, 4, None)


@pytest.mark.parametrize(
    ("overrides", "error", "text"),
    [
        ({"model.path": "./nowhere"}, ModelError, "neither a folder that is there nor a hub id"),
        ({"policy": {"kind": "lora", "target_modules": ["q_proj"]}}, ModelError, "'q_proj'.*, to_q, "),
        ({"prompts.train": "nowhere.txt"}, PromptSetError, r"nowhere\.txt"),
        ({"rewards": {"a": {"scorer": "jpg_compressibility"}}}, RewardError, "jpeg_compressibility"),
        ({"gold": {"g": {"scorer": "clip", "options": {"path": "./nowhere"}}}}, RewardError, "nowhere"),
        (
            {"evaluation.prompts": 5, "evaluation.grid_prompts": 1},
            ConfigError,
            r"prompts\.unseen has 4 prompts",
        ),
        ({"data": {"mode": "offline", "folder": "./nowhere"}}, RecordingError, "nowhere"),
        ({"sampling.steps": 1000}, ModelError, "cannot be cut into 1000 steps"),
    ],
)
def test_mistakes_are_found_early(
    tiny_pipeline: Path, tmp_path: Path, overrides: dict[str, Any], error: type[PrdpError], text: str
) -> None:
    with pytest.raises(error, match=text):
        check_inputs(make_config(tiny_pipeline, tmp_path, overrides))


def test_a_name_beside_a_models_folder_is_no_hub_id(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for prompts and rewards: else the hub would be asked for it."""
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "cats.txt").write_text("a cat")
    monkeypatch.chdir(tmp_path)
    reward = {"a": {"scorer": "clip", "options": {"path": "models/tinny"}}}
    for key, value, error, near in (
        ("model.path", "models/tinny", ModelError, "models/tiny"),
        ("prompts.train", "models/cats", PromptSetError, "models/cats.txt"),
        ("rewards", reward, RewardError, "models/tiny"),
    ):
        with pytest.raises(error, match=f"did you mean {near}"):
            check_inputs(make_config(tiny_pipeline, tmp_path, {key: value}))


@pytest.mark.parametrize("missing", ["model_index.json", "scheduler/scheduler_config.json"])
def test_a_folder_that_is_no_pipeline_is_refused(tiny_pipeline: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, folder)
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        check_inputs(make_config(folder, tmp_path))


def test_more_processes_than_the_machine_holds_are_refused(tmp_path: Path) -> None:
    config = make_config(Path("no/model"), tmp_path, {"actors": {"count": 3, "minimum": 3, "cpus": 1.0}})
    check_room(config, {"CPU": 3.5})
    elastic = make_config(Path("no/model"), tmp_path, {"actors": {"count": 3, "cpus": 1.0}})
    check_room(elastic, {"CPU": 1.5})
    with pytest.raises(ConfigError, match=r"3\.5 CPUs.*actors 3.* 2"):
        check_room(config, {"CPU": 2.0})
    jpeg = {"scorer": "jpeg_compressibility"}
    several = {"rewards": {"a": jpeg, "b": jpeg, "c": {"app": "x"}}, "gold": {"d": jpeg}}
    joined = {"ray.address": "auto", "reward_service.replicas": 2}
    every = make_config(Path("no/model"), tmp_path, {**several, **joined})
    with pytest.raises(ConfigError, match=r"reward_service 1\.5\)"):
        check_room(every, {"CPU": 1.0})
    gpus = make_config(Path("no/model"), tmp_path, {"learner": {"gpus": 1}})
    with pytest.raises(ConfigError, match="1 GPUs"):
        check_room(gpus, {"CPU": 8.0})


def test_cuda_without_gpus_for_the_processes_and_gpus_that_nobody_uses_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    none, cuda = make_config(Path("no/model"), tmp_path), {"model.device": "cuda", "learner.gpus": 0.6}
    with pytest.raises(ConfigError, match=r"actors\.gpus is 0"):
        check_device(make_config(Path("no/model"), tmp_path, cuda))
    given = make_config(Path("no/model"), tmp_path, cuda | {"actors.gpus": 0.4})
    check_device(given)
    room = {"CPU": 64.0, "GPU": 2.0}
    automatic = none.model_copy(update={"model": none.model.model_copy(update={"device": "auto"})})
    assert [len(missing_room(config, room)) for config in (automatic, given)] == [1, 0]


def test_a_cluster_without_enough_free_room_is_named_before_anybody_waits(tmp_path: Path) -> None:
    config = make_config(Path("no/model"), tmp_path, {"actors": {"count": 3, "minimum": 3, "cpus": 1.0}})
    (line,) = missing_room(config, {"CPU": 2.0})
    assert all(word in line for word in ("3.5 CPUs", "actors 3", "learner 0.25", "2 are free"))
    assert missing_room(config, {"CPU": 3.5}) == []
