"""A run goes on with the model, prompts and settings that it began with, or says what is another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config.load import config_to_yaml
from common.config.objectives import NftSection
from common.config.schema import Config
from common.errors import CheckpointError, RunFolderError
from driver.main import begin, check_inputs
from driver.run.changes import digest_inputs
from driver.run.checkpoints import Checkpoints, RunState
from driver.run.folder import Journal, claim, find_beginning, write_journal
from driver.run.recordings import TrajectoryWriter, open_recording
from tests.scored_groups import make_group
from tests.tiny_config import TRAIN_PROMPTS, make_config

Change = Callable[[Path], object]


def byte(name: str) -> Change:
    """The last byte of a weights file, without its size or its time."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    return change


def setting(name: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> Config:
    """Of a run in a folder, after epoch 1 of 4, whose model is tmp_path / "model"."""
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    config = make_config(model, tmp_path, {"run.epochs": 4})
    with claim(config.run_folder):
        save(config, "abc", 1)
    return config


def save(config: Config, run_id: str, epoch: int) -> None:
    inputs = check_inputs(config)
    digests = digest_inputs(config, inputs.train, inputs.unseen, inputs.recording)
    state = RunState(run_id, epoch, "tracked", inputs=digests)
    Checkpoints.of(config).write(state, config_to_yaml(config), {"learner.json": b'{"version": 1}'})


def again(config: Config, fork: str | None = None, accept: bool = False) -> Any:
    """As train.py begins."""
    with claim(config.run_folder):
        return begin(config, check_inputs(config), fork, accept)


CHANGES = [
    (byte("model/unet/diffusion_pytorch_model.safetensors"), "model unet"),
    (byte("model/vae/diffusion_pytorch_model.safetensors"), "model vae"),
    (byte("model/text_encoder/model.safetensors"), "model text_encoder"),
    (setting("model/scheduler/scheduler_config.json", beta_end=0.5), "model scheduler"),
    (setting("model/tokenizer/tokenizer_config.json", model_max_length=5), "model tokenizer"),
    (lambda folder: (folder / "train.txt").write_text("other\n" + "\n".join(TRAIN_PROMPTS)), "prompts.train"),
    (lambda folder: (folder / "unseen.txt").write_text("\n".join(TRAIN_PROMPTS)), "prompts.unseen"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES, ids=[name for _, name in CHANGES])
def test_what_changed_is_refused_and_named_and_recorded_where_it_is_accepted(
    config: Config, tmp_path: Path, change: Change, name: str
) -> None:
    assert again(config).changes == ()
    change(tmp_path)
    with pytest.raises(RunFolderError, match=f"\n  {name}: .*\n.*--accept-changes"):
        again(config)
    beginning = again(config, accept=True)
    ((epoch, text),) = beginning.changes
    assert (beginning.run_id, beginning.accepted, epoch, text.split(":")[0]) == ("abc", 1, 1, name)
    assert text in beginning.notes[-1]
    place = Checkpoints.of(config).where(2)
    state = replace(beginning.checkpoint.state, epoch=2, inputs=beginning.inputs, changes=beginning.changes)
    assert Checkpoints.of(config).write(state, config_to_yaml(config), {}) == place
    assert (again(config).changes, again(config).accepted) == (((1, text),), 0)


def test_a_model_and_prompts_that_moved_are_the_same(config: Config, tmp_path: Path) -> None:
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    lines = [json.dumps({"caption": prompt}) for prompt in TRAIN_PROMPTS]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "train.txt").unlink()
    moved = config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": str(tmp_path / "elsewhere")}),
            "prompts": config.prompts.model_copy(
                update={
                    "train": config.prompts.train.model_copy(update={"path": str(tmp_path / "train.jsonl")})
                }
            ),
        }
    )
    assert again(moved).changes == ()


def test_settings_that_change_no_bit_are_free(config: Config) -> None:
    model = config.model.model_copy(update={"text_encoder": "drop"})
    assert again(config.model_copy(update={"model": model})).changes == ()


def test_settings_are_accepted_too_but_not_those_of_the_weights(config: Config) -> None:
    other = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 0.5})}
    )
    assert [text.split(":")[0] for _, text in again(other, accept=True).changes] == [
        "optimizer.learning_rate"
    ]
    rank = other.model_copy(update={"policy": config.policy.model_copy(update={"rank": 3})})
    with pytest.raises(RunFolderError, match=r"policy\.rank: 2 against 3\n(.*\n)*.*belong to policy\.rank"):
        again(rank, accept=True)
    nft = other.model_copy(update={"objective": NftSection()})
    with pytest.raises(RunFolderError, match=r"weights belong to objective\.kind"):
        again(nft, accept=True)


def test_a_fork_takes_other_prompts_and_on_demand_another_model(config: Config, tmp_path: Path) -> None:
    place = Checkpoints.of(config).where(1)
    for change, _ in (CHANGES[0], CHANGES[5]):
        change(tmp_path)
    new = config.model_copy(update={"run": config.run.model_copy(update={"name": "new"})})
    with pytest.raises(CheckpointError, match=r"model unet: .*\n.*--accept-changes"):
        again(new, fork=place)
    beginning = again(new, fork=place, accept=True)
    assert [(epoch, text.split(":")[0]) for epoch, text in beginning.changes] == [
        (0, "model unet"),
        (0, "prompts.train"),
    ]
    assert again(new, fork=place).changes == beginning.changes


@pytest.mark.parametrize("journal", [True, False])
def test_a_checkpoint_of_another_run_is_refused(config: Config, journal: bool) -> None:
    """Also where it is not the newest, because the run would delete it. Without a journal the oldest says
    whose the folder is."""
    if journal:
        write_journal(config.run_folder, Journal("abc", "tracked", config_to_yaml(config), 0))
    for epoch in (2, 3):
        other = config.model_copy(update={"run": config.run.model_copy(update={"name": "other"})})
        save(other, "def" if epoch == 2 else "abc", epoch)
        name = f"epoch_{epoch:06d}"
        shutil.copytree(other.run_folder / "checkpoints" / name, config.run_folder / "checkpoints" / name)
        with pytest.raises(RunFolderError, match=f"run abc.*\n.*epoch_{2:06d} is of run def"):
            again(config, accept=True)


def test_a_run_without_a_checkpoint_gives_way_to_one_of_other_inputs(config: Config) -> None:
    shutil.rmtree(config.run_folder / "checkpoints")
    inputs = {"prompts.train": "a" * 64}
    write_journal(config.run_folder, Journal("abc", "tracked", config_to_yaml(config), 0, inputs=inputs))
    assert find_beginning(config, inputs).run_id == "abc"
    new = find_beginning(config, {"prompts.train": "b" * 64})
    assert new.run_id != "abc"
    assert "run abc" in new.notes[-1]
    assert "prompts.train" in new.notes[-1]


def test_a_recording_has_the_digest_of_its_rows(tmp_path: Path) -> None:
    writer, groups = TrajectoryWriter(tmp_path / "one"), [make_group(0), make_group(1)]
    writer.write_epoch(0, groups)
    digest = open_recording(tmp_path / "one").digest()
    TrajectoryWriter(tmp_path / "two").write_epoch(0, groups)
    assert open_recording(tmp_path / "two").digest() == digest
    writer.write_epoch(1, groups)
    assert open_recording(tmp_path / "one").digest() != digest
