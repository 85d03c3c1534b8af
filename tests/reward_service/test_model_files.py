"""Reading tensors refuses everything else; sources say what is wrong before anything is fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import RewardError
from reward_service.scorers.model_files import ModelSource, read_json, read_tensors

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float16)}


class _MakesFolder:
    """What an attacker would send: opening it as a whole pickle runs a command."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("wrap", [dict, lambda tensors: {"epoch": 3, "state_dict": tensors}])
def test_tensors_come_back_as_saved(tmp_path: Path, wrap: type[dict]) -> None:
    torch.save(wrap({f"module.{name}": tensor for name, tensor in TENSORS.items()}), tmp_path / "a.pt")
    read = read_tensors(tmp_path / "a.pt")
    assert list(read) == ["a", "b"]
    assert all(torch.equal(read[name], TENSORS[name]) for name in read)


def test_safetensors_come_back_as_saved(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    read = read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({**TENSORS, "c": _MakesFolder(made)}, tmp_path / "a.pt")
    with pytest.raises(RewardError, match="refused"):
        read_tensors(tmp_path / "a.pt")
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(1)], "list"),
        ({}, "no tensors"),
        ({"state_dict": {"a": 1.0, "b": torch.ones(1)}}, "'a'"),
    ],
)
def test_files_without_named_tensors_are_refused(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(RewardError, match=reason):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors", "missing.pt", "missing.safetensors"])
def test_damaged_and_missing_files_are_a_reward_error(tmp_path: Path, name: str) -> None:
    (tmp_path / f"a{Path(name).suffix}").write_bytes(b"PK\x03\x04 not weights")
    with pytest.raises(RewardError, match=name):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_a_json_file_without_an_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RewardError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_source_lists_the_files_that_matter_each_once(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "model-2.safetensors", "README.md", "pytorch_model.bin"):
        (tmp_path / name).write_text("")

    def names() -> list[str]:
        source = ModelSource("option", "model", str(tmp_path), "main", patterns, "pytorch_model.bin")
        return [file.name for file in source.files()]

    patterns = ("config.json", "model.safetensors", "model*.safetensors")
    assert names() == ["config.json", "model-2.safetensors", "model.safetensors"]
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert names() == ["config.json", "pytorch_model.bin"]
