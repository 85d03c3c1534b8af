"""Checkpoints: whole or not there, damage found, the one before used, the same in every kind of storage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from common.errors import CheckpointError, DamagedError
from common.storage import Storage
from driver.run.checkpoints import (
    FORMAT,
    Checkpoint,
    Checkpoints,
    RunState,
    checkpoint_name,
    read_checkpoint,
)

FILES = {"a.bin": b"\x00\x01" * 1000, "policy/weights.safetensors": b"w" * 77}


def remote_storage(folder: Path) -> Storage:
    """A folder of this machine, used like a remote store; a write is tried twice."""
    return Storage(str(folder), fs.LocalFileSystem(), str(folder), local=False, waits_s=(0.0, 0.0))


STORAGES: dict[str, Callable[[Path], Storage]] = {"local": Storage.open, "remote": remote_storage}


def state(epoch: int, run_id: str = "run") -> RunState:
    history = {"a cat": (0.25 * epoch, 1.0)}
    return RunState(run_id=run_id, epoch=epoch, tracker_run="t", history=history)


def newest(checkpoints: Checkpoints) -> Checkpoint:
    checkpoint = checkpoints.newest().checkpoint
    assert checkpoint is not None
    return checkpoint


@pytest.fixture(params=sorted(STORAGES))
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return STORAGES[request.param](tmp_path / "run" / "checkpoints")


@pytest.fixture
def checkpoints(storage: Storage) -> Checkpoints:
    return Checkpoints(storage)


def test_round_trip(checkpoints: Checkpoints) -> None:
    place = checkpoints.write(state(3), "run: {}\n", FILES)
    assert place == checkpoints.where(3)
    for read in (read_checkpoint(place), newest(checkpoints)):
        assert (read.place, read.state, read.config_yaml) == (place, state(3), "run: {}\n")
        assert read.files == FILES


def test_what_is_not_wanted_is_neither_read_nor_verified(checkpoints: Checkpoints) -> None:
    place = checkpoints.write(state(3), "config", FILES)
    (Path(place) / "a.bin").write_bytes(b"other")
    read = read_checkpoint(place, lambda file: file.startswith("policy/"))
    assert (read.files, read.config_yaml) == ({name: FILES[name] for name in FILES if "/" in name}, "")
    assert read_checkpoint(place, lambda file: file == "config.yaml").config_yaml == "config"


@pytest.mark.parametrize("name", ["a.bin", "policy/weights.safetensors", "config.yaml", "run.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_any_damage_is_found_and_the_one_before_is_used(
    checkpoints: Checkpoints, name: str, damage: str
) -> None:
    checkpoints.write(state(1), "config", FILES)
    place = checkpoints.write(state(2), "config", FILES)
    path = Path(place) / name
    content = path.read_bytes()
    kept = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[: len(content) // 2], "empty": b""}
    path.unlink()
    if damage in kept:
        path.write_bytes(kept[damage])
    with pytest.raises(DamagedError, match=name):
        read_checkpoint(place)
    found = checkpoints.newest()
    assert newest(checkpoints).state.epoch == 1
    (note,) = found.notes
    assert checkpoints.where(2) in note


def test_only_damaged_ones_are_an_error(checkpoints: Checkpoints) -> None:
    for epoch in (1, 2):
        (Path(checkpoints.write(state(epoch), "config", FILES)) / "a.bin").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)epoch_000002.*a\.bin.*epoch_000001.*a\.bin"):
        checkpoints.newest()


def test_one_that_cannot_be_read_is_no_damage_and_hides_no_epochs(checkpoints: Checkpoints) -> None:
    """An older checkpoint would be used, and epochs lost, for a passing error of rights or network."""
    checkpoints.write(state(1), "config", FILES)
    path = Path(checkpoints.write(state(2), "config", FILES)) / "a.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="epoch_000002 cannot be read") as caught:
        checkpoints.newest()
    assert not isinstance(caught.value, DamagedError)


def test_an_unfinished_one_is_left_out_and_swept_away(checkpoints: Checkpoints, storage: Storage) -> None:
    checkpoints.write(state(1), "config", FILES)
    for epoch in (1, 2):
        begin(storage, epoch)
    expected = [1, 2] if storage.local else [2]
    found = checkpoints.newest()
    assert newest(checkpoints).state.epoch == 1
    assert [note.split("epoch_")[1][:6] for note in found.notes] == [f"{epoch:06d}" for epoch in expected]
    checkpoints.prune({1})
    assert checkpoints.newest().notes == ()
    assert [path.name for path in Path(checkpoints.place).iterdir()] == ["epoch_000001"]


def begin(storage: Storage, epoch: int) -> None:
    """What a writer leaves that dies before its last file."""
    name = checkpoint_name(epoch)
    folder = Path(storage.place) / (f".{name}.partial" if storage.local else name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.bin").write_bytes(FILES["a.bin"])


def test_what_a_killed_pruning_leaves_is_no_checkpoint_and_swept_away(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage.open(tmp_path))
    checkpoints.write(state(1), "config", FILES)
    shutil.copytree(tmp_path / "epoch_000001", tmp_path / ".epoch_000002.replaced")
    assert (checkpoints.epochs(), checkpoints.newest().notes) == ([1], ())
    checkpoints.prune({1})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_000001"]


def test_no_checkpoint_is_no_error(checkpoints: Checkpoints, storage: Storage) -> None:
    assert checkpoints.newest().checkpoint is None
    begin(storage, 1)
    found = checkpoints.newest()
    assert (found.checkpoint, len(found.notes)) == (None, 1)
    assert checkpoints.epochs() == []


def test_pruning_deletes_the_others(checkpoints: Checkpoints) -> None:
    for epoch in (1, 2, 3, 1000000):
        checkpoints.write(state(epoch), "config", FILES)
    checkpoints.prune({1, 1000000})
    assert checkpoints.epochs() == [1, 1000000]
    assert newest(checkpoints).state.epoch == 1000000


def test_writing_an_epoch_again_replaces_all_of_it(checkpoints: Checkpoints) -> None:
    checkpoints.write(state(1), "config", {**FILES, "ema.bin": b"e"})
    place = checkpoints.write(state(1), "other", FILES)
    assert read_checkpoint(place).config_yaml == "other"
    assert not (Path(place) / "ema.bin").exists()
    assert [path.name for path in Path(checkpoints.place).iterdir()] == ["epoch_000001"]


def test_another_runs_checkpoint_is_never_replaced(checkpoints: Checkpoints) -> None:
    place = checkpoints.write(state(1), "config", FILES)
    with pytest.raises(CheckpointError, match=r"another run \(run\).*checkpoint\.folder"):
        checkpoints.write(state(1, "other"), "config", FILES)
    assert read_checkpoint(place).state.run_id == "run"
    (Path(place) / "run.json").write_text("torn")
    checkpoints.write(state(1, "other"), "config", FILES)


def test_an_unwritable_disk_is_an_error_and_leaves_the_earlier_one(checkpoints: Checkpoints) -> None:
    checkpoints.write(state(1), "config", FILES)
    with pytest.raises(CheckpointError, match="epoch_000002"):
        checkpoints.write(state(2), "config", {"x" * 300: b""})
    assert newest(checkpoints).state.epoch == 1


def test_a_place_that_cannot_be_written_is_found_before_the_run(checkpoints: Checkpoints) -> None:
    checkpoints.check_writable()
    assert checkpoints.newest().notes == ()
    folder = Path(checkpoints.place)
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoints.check_writable()


@pytest.mark.parametrize("field", ["epoch", "run_id", "tracker_run", "forked_from"])
def test_another_state_than_was_written_is_damage(checkpoints: Checkpoints, field: str) -> None:
    checkpoints.write(state(1), "config", FILES)
    path = Path(checkpoints.write(state(2), "config", FILES)) / "run.json"
    header = json.loads(path.read_text())
    header["state"][field] = {"epoch": 3}.get(field, "other")
    path.write_text(json.dumps(header))
    found = checkpoints.newest()
    assert newest(checkpoints).state.epoch == 1
    assert "run.json changed since it was written" in found.notes[0]


def test_a_checkpoint_under_the_name_of_another_is_damage(checkpoints: Checkpoints) -> None:
    place = Path(checkpoints.write(state(1), "config", FILES))
    shutil.copytree(place, place.with_name("epoch_000007"))
    shutil.copytree(place, place.with_name("kept for later"))
    found = checkpoints.newest()
    assert newest(checkpoints).state.epoch == 1
    assert "epoch_000007 is the checkpoint after epoch 1" in found.notes[0]
    assert read_checkpoint(place.with_name("kept for later")).state.epoch == 1


def test_folders_that_are_no_checkpoints_are_left_alone(checkpoints: Checkpoints) -> None:
    """Somebody's notes beside the checkpoints have no run.json either."""
    place = Path(checkpoints.write(state(1), "config", FILES)).parent
    for name in ("notes", ".notes.partial", "epoch_1"):
        (place / name).mkdir()
        (place / name / "file").write_text("theirs")
    checkpoints.prune({1})
    left = sorted(path.name for path in place.iterdir())
    assert left == [".notes.partial", "epoch_000001", "epoch_1", "notes"]


@pytest.mark.parametrize(
    "header",
    [[], {}, {"format": FORMAT, "state": {}, "files": {}}, {"format": FORMAT, "files": 3}],
)
def test_a_foreign_header_is_no_checkpoint(checkpoints: Checkpoints, header: object) -> None:
    place = checkpoints.write(state(1), "config", FILES)
    (Path(place) / "run.json").write_text(json.dumps(header))
    with pytest.raises(DamagedError, match="no checkpoint"):
        read_checkpoint(place)


@pytest.mark.parametrize(("number", "writer"), [(1, "prdp-on-ray 0.1"), (FORMAT + 1, "another version")])
def test_another_format_is_refused_with_what_to_do_and_not_taken_for_damage(
    checkpoints: Checkpoints, number: int, writer: str
) -> None:
    place = checkpoints.write(state(1), "config", FILES)
    header = json.loads((Path(place) / "run.json").read_text())
    (Path(place) / "run.json").write_text(json.dumps({**header, "format": number}))
    with pytest.raises(CheckpointError, match=rf"{writer}.*format {number}.*run\.name") as caught:
        checkpoints.newest()
    assert not isinstance(caught.value, DamagedError)
