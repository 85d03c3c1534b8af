"""Checkpoints on a real S3-compatible server: whole or unfinished, damage found, the one before used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs

from common.config.schema import Config
from common.errors import CheckpointError, DamagedError
from common.places import join_place
from common.storage import Storage
from driver.run.checkpoints import Checkpoints, Found, RunState, read_checkpoint
from tests.tiny_config import make_config

# More than one part of an upload.
FILES = {"big.bin": bytes(range(256)) * 45_000, "policy/weights.safetensors": b"w" * 77}


def state(epoch: int) -> RunState:
    return RunState(run_id="run", epoch=epoch, tracker_run="t")


@pytest.fixture
def config(s3_folder: str, tmp_path: Path) -> Config:
    return make_config(Path("no/model"), tmp_path, {"checkpoint.folder": s3_folder})


@pytest.fixture
def checkpoints(config: Config) -> Checkpoints:
    return Checkpoints.of(config)


def objects(checkpoints: Checkpoints) -> tuple[fs.FileSystem, dict[str, str]]:
    """The store, and the path of every object below the checkpoints' place, by relative name."""
    storage = Storage.open(checkpoints.place)
    found = storage.filesystem.get_file_info(fs.FileSelector(storage.root, recursive=True))
    files = [info.path for info in found if info.type == fs.FileType.File]
    return storage.filesystem, {path.removeprefix(f"{storage.root}/"): path for path in files}


def test_round_trip_by_uri(checkpoints: Checkpoints, config: Config) -> None:
    checkpoints.check_writable()
    assert checkpoints.newest().checkpoint is None
    place = checkpoints.write(state(3), "run: {}\n", FILES)
    assert place == join_place(join_place(config.checkpoint.folder, "test"), "epoch_000003")
    read = read_checkpoint(place)
    assert (read.state, read.config_yaml, read.files) == (state(3), "run: {}\n", FILES)
    assert (checkpoints.epochs(), checkpoints.newest().checkpoint) == ([3], read)
    with checkpoints.on_disk(3, "policy") as folder:
        assert (folder / "weights.safetensors").read_bytes() == FILES["policy/weights.safetensors"]


def test_a_prefix_is_meant_as_it_is_written(s3_server: str, tmp_path: Path) -> None:
    place = f"s3://bucket/{tmp_path.name}/a b#c%23 \u00fc[1];x?endpoint_override={s3_server}&scheme=http"
    storage = Storage.open(join_place(place, "test"))
    assert storage.root == f"bucket/{tmp_path.name}/a b#c# \u00fc[1];x/test"
    storage.write("epoch_000001", {"run.json": b"{}"})
    assert Storage.open(storage.place).read("epoch_000001", "run.json") == b"{}"


def test_a_writer_that_died_leaves_an_unfinished_one(checkpoints: Checkpoints) -> None:
    for epoch in (1, 2, 3):
        checkpoints.write(state(epoch), "config", FILES)
    store, paths = objects(checkpoints)
    store.delete_file(paths["epoch_000003/run.json"])
    with store.open_output_stream(paths["epoch_000002/big.bin"]) as stream:
        stream.write(FILES["big.bin"][:-1])
    with pytest.raises(DamagedError, match=r"run\.json is missing"):
        read_checkpoint(checkpoints.where(3))
    found = checkpoints.newest()
    assert found.checkpoint is not None
    assert found.checkpoint.state.epoch == 1
    unfinished, damaged = found.notes
    assert "epoch_000003" in unfinished
    assert "not finished" in unfinished
    assert "epoch_000002" in damaged
    assert "big.bin changed" in damaged
    checkpoints.prune({1})
    assert {name.split("/")[0] for name in objects(checkpoints)[1]} == {"epoch_000001"}


def test_the_commit_comes_last_and_goes_first(checkpoints: Checkpoints) -> None:
    """Any moment in between shows an unfinished one or none, also where an older one is replaced."""
    checkpoints.write(state(1), "config", FILES)
    storage = Storage.open(checkpoints.place)
    once = replace(storage, waits_s=(0.0,))
    with pytest.raises(TypeError):
        once.write("epoch_000001", {"run.json": b"{}", "z.bin": "no bytes"})  # type: ignore[dict-item]
    assert (storage.names(), checkpoints.newest().checkpoint) == ([], None)
    checkpoints.write(state(1), "config", FILES)
    assert sorted(objects(checkpoints)[1]) == sorted(
        f"epoch_000001/{name}" for name in (*FILES, "config.yaml", "run.json")
    )
    checkpoints.prune(())
    assert checkpoints.newest() == Found(None, ())


def test_a_missing_bucket_is_found_before_the_run(config: Config) -> None:
    folder = config.checkpoint.folder.replace("//bucket/", "//nobucket/")
    section = config.checkpoint.model_copy(update={"folder": folder})
    other = Checkpoints.of(config.model_copy(update={"checkpoint": section}))
    with pytest.raises(CheckpointError, match=r"s3://nobucket/.* cannot be written: .*bucket"):
        other.check_writable()


def test_a_write_is_tried_again_and_then_an_error(s3_folder: str, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage.open(s3_folder.replace("//bucket/", "//nobucket/"))
    with pytest.raises(
        CheckpointError, match=r"Could not write the checkpoint s3://nobucket/.*/epoch_000001"
    ):
        Checkpoints(replace(storage, waits_s=(0.0, 0.0, 0.0))).write(state(1), "config", FILES)
    assert [record.getMessage().count("tried again") for record in caplog.records] == [1, 1]
