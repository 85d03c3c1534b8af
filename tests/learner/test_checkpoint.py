"""Checkpoints on disk: whole or not there, damage found, old ones pruned."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import CheckpointError
from learner.checkpoint import (
    RunState,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)

FILES = {"a.bin": b"\x00\x01" * 1000, "policy/weights.safetensors": b"w" * 77}


def state(epoch: int) -> RunState:
    return RunState(run_id="run", epoch=epoch, cursor=16 * epoch, tracker_run="t")


def test_round_trip(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, state(3), "run: {}\n", FILES)
    read = read_checkpoint(folder)
    assert (read.state, read.config_yaml, read.files) == (state(3), "run: {}\n", FILES)


@pytest.mark.parametrize("name", ["a.bin", "policy/weights.safetensors", "config.yaml"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_any_damage_is_found(tmp_path: Path, name: str, damage: str) -> None:
    folder = write_checkpoint(tmp_path, state(1), "config", FILES)
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "delete":
        path.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flip" else b""))
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(folder)


def test_an_unfinished_one_is_not_listed_and_the_one_before_is_used(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1), "config", FILES)
    (tmp_path / "checkpoints" / ".epoch_000002.partial").mkdir()
    assert [found.state.epoch for found in latest_checkpoint(tmp_path)] == [1]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) == []


def test_pruning_keeps_the_last_and_some_before(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 10):
        write_checkpoint(tmp_path, state(epoch), "config", FILES)
    prune_checkpoints(tmp_path, keep=1)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["epoch_000003", "epoch_000010"]


def test_an_unwritable_disk_is_an_error_and_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1), "config", FILES)
    (tmp_path / "checkpoints" / ".epoch_000002.partial").write_text("in the way")
    with pytest.raises(CheckpointError, match="Could not write the checkpoint"):
        write_checkpoint(tmp_path, state(2), "config", {"x" * 300: b""})
    assert [found.state.epoch for found in latest_checkpoint(tmp_path)] == [1]
