"""A fork is a new run from epoch 0 with another run's weights; it never touches what is there already."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.load import config_to_yaml
from common.config.schema import Config
from common.errors import CheckpointError, RunFolderError
from driver.run.checkpoints import Checkpoints, RunState, read_checkpoint
from driver.run.folder import Journal, claim, find_beginning, write_journal
from driver.run.fork import begin_fork, check_fits
from learner.build import build_learner
from learner.parallel import Single
from learner.state import export_state, restore_state
from tests.tiny_config import make_config

FILES = {"learner.json": b'{"version": 0, "published": []}', "policy/w": b"w"}


def make(folder: Path, name: str, **overrides: Any) -> Config:
    settings = {key.replace("__", "."): value for key, value in overrides.items()}
    return make_config(Path("no/model"), folder, {"run.epochs": 4, "run.name": name, **settings})


def save(config: Config, epoch: int, run_id: str = "abc") -> str:
    """A checkpoint with made-up files."""
    state = RunState(run_id, epoch, tracker_run="tracked")
    return Checkpoints.of(config).write(state, config_to_yaml(config), FILES)


def fork(config: Config, place: str) -> None:
    """As train.py does it."""
    with claim(config.run_folder):
        begin_fork(config, place)


def test_a_fork_is_a_new_run_at_epoch_0_with_the_same_files(tmp_path: Path) -> None:
    place = save(make(tmp_path, "old"), 3)
    config = make(tmp_path, "new", sampling__steps=9, objective__kl_weight=7.0)
    fork(config, place)
    beginning = find_beginning(config)
    assert (beginning.epoch, beginning.tracker_run) == (0, "")
    assert beginning.run_id not in ("abc", "")
    assert beginning.forked_from == f"{place} of run abc"
    assert beginning.notes == (f"This run begins with {place} of run abc.",)
    checkpoint = beginning.checkpoint
    assert checkpoint is not None
    assert (checkpoint.files, checkpoint.config_yaml) == (FILES, config_to_yaml(config))
    assert read_checkpoint(place).state.run_id == "abc"


def test_the_same_command_goes_on_with_its_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = save(make(tmp_path, "old"), 3)
    config = make(tmp_path, "new")
    fork(config, place)
    begun = find_beginning(config)
    monkeypatch.chdir(tmp_path)
    fork(config, str(Path(place).relative_to(tmp_path)))
    assert find_beginning(config) == begun
    write_journal(config.run_folder, Journal(begun.run_id, "opened", "", 0))
    fork(config, place)
    assert find_beginning(config).tracker_run == "opened"
    state = RunState(begun.run_id, 2, "tracked", begun.forked_from)
    Checkpoints.of(config).write(state, config_to_yaml(config), FILES)
    Checkpoints.of(config).prune({2})
    fork(config, place)
    assert find_beginning(config).epoch == 2


def test_the_same_command_goes_on_when_the_first_run_is_gone(tmp_path: Path) -> None:
    old, config = make(tmp_path, "old"), make(tmp_path, "new")
    place = save(old, 3)
    fork(config, place)
    begun = find_beginning(config)
    shutil.rmtree(old.run_folder)
    fork(config, f"{place}/")
    fork(config, f"file://{place}")
    assert find_beginning(config) == begun
    with pytest.raises(RunFolderError, match=r"holds run .* forked from"):
        fork(config, Checkpoints.of(old).where(4))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        fork(make(tmp_path, "another"), place)
    save(old, 3, run_id="def")
    with pytest.raises(RunFolderError, match=r"holds run .* forked from .* of run abc"):
        fork(config, place)


def test_a_fork_without_its_checkpoint_never_begins_with_the_pretrained_model(tmp_path: Path) -> None:
    place = save(make(tmp_path, "old"), 3)
    config = make(tmp_path, "new")
    fork(config, place)
    begun = find_beginning(config)
    text = config_to_yaml(config)
    write_journal(config.run_folder, Journal(begun.run_id, "opened", text, 0, begun.forked_from))
    shutil.rmtree(config.run_folder / "checkpoints")
    for changed in (config, make(tmp_path, "new", sampling__steps=9)):
        with pytest.raises(RunFolderError, match=r"run abc.*--fork"):
            find_beginning(changed)
    with pytest.raises(RunFolderError, match=r"journal\.json"):
        fork(config, place)


def test_a_folder_with_any_other_run_is_refused(tmp_path: Path) -> None:
    old, other = make(tmp_path, "old"), make(tmp_path, "other")
    place, later = save(old, 3), save(old, 4)
    save(other, 1, run_id="def")
    with pytest.raises(RunFolderError, match=r"run def.*run\.name"):
        fork(other, place)
    with pytest.raises(RunFolderError, match="run abc"):
        fork(old, place)
    new = make(tmp_path, "new")
    fork(new, place)
    with pytest.raises(RunFolderError, match=r"epoch 0, forked from .*epoch_000003 of run abc"):
        fork(new, later)
    begun = make(tmp_path, "begun")
    (begun.run_folder / "evaluations").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"evaluations.*run\.name"):
        fork(begun, place)
    assert Checkpoints.of(begun).epochs() == []


def test_only_differences_that_matter_are_refused_and_all_are_listed(tmp_path: Path) -> None:
    lora = {"kind": "lora", "rank": 3, "alpha": 2}
    source = read_checkpoint(save(make(tmp_path, "old", optimizer__ema_decay=0.9), 3))
    other = make(tmp_path, "new", policy=lora, model__revision="v2", learner__workers=2, run__seed=8)
    with pytest.raises(CheckpointError, match=r"model\.revision") as caught:
        check_fits(source, other)
    listed = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:-1]]
    assert listed == ["model.revision", "policy.rank", "optimizer.ema_decay"]
    check_fits(source, make(tmp_path, "new", optimizer__ema_decay=0.5))


def test_a_models_folder_is_the_same_from_everywhere(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny_pipeline, tmp_path)
    source = read_checkpoint(save(config, 1))
    monkeypatch.chdir(tiny_pipeline.parent)
    check_fits(source, make_config(Path(tiny_pipeline.name), tmp_path))


def test_a_place_without_a_checkpoint_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config = make(tmp_path, "new")
    with pytest.raises(CheckpointError, match="nowhere"):
        fork(config, str(tmp_path / "nowhere"))
    assert find_beginning(config).checkpoint is None


def test_a_fork_by_uri(s3_folder: str, tmp_path: Path) -> None:
    place = save(make(tmp_path, "old", checkpoint__folder=s3_folder), 3)
    here = make(tmp_path, "here")
    there = make(tmp_path, "there", checkpoint__folder=s3_folder)
    for config in (here, there):
        fork(config, place)
        assert find_beginning(config).forked_from == f"{place} of run abc"
    assert Checkpoints.of(there).place.startswith("s3://")


def test_the_learner_takes_over_weights_optimizer_averages_and_version(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    """The version says whether the policy is still the reference, so it goes on counting."""
    old = make_config(tiny_pipeline, tmp_path, {"run.name": "old", "optimizer.ema_decay": 0.5})
    learner = build_learner(old, "abc", Single())
    for value in learner.parameters.values():
        value.grad = torch.ones_like(value)
    learner.optimizer.step()
    learner.publish()
    files = {**export_state(learner), "learner.json": b'{"version": 5, "published": [[4, "abc"]]}'}
    place = Checkpoints.of(old).write(RunState("abc", 3, ""), config_to_yaml(old), files)
    new = make_config(tiny_pipeline, tmp_path, {"run.name": "new", "optimizer.ema_decay": 0.5})
    fork(new, place)
    beginning = find_beginning(new)
    forked = build_learner(new, beginning.run_id, Single())
    restore_state(forked, beginning.files)
    stamp = forked.publish().stamp
    assert (stamp.version, stamp.run_id) == (5, beginning.run_id)
    assert forked.old_policy.stamps == (stamp,)
    assert stamp.digest == learner.publish().stamp.digest
    after = export_state(forked)
    for name in ("optimizer.safetensors", "ema.safetensors"):
        assert bytes(after[name]) == bytes(files[name])
