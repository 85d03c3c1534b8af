"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import CheckpointError, RunFolderError
from common.storage import Storage, replace_file


def test_a_file_is_replaced_and_nothing_stays_aside(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.json"
    for content in (b"one", b"two"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file.json"]


def test_it_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the power may fail with the new name on the disk and nothing behind it."""
    path, done = tmp_path / "file", []
    replace, flush = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("flush"), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("rename"), replace(old, new)))
    replace_file(path, b"content")
    assert done == ["flush", "rename", "flush"]


def test_a_disk_that_refuses_is_a_kind_error_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"file: .*No space left"):
        replace_file(path, b"new")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file", b"old")]


def test_files_of_this_machine_are_local_however_they_are_written() -> None:
    assert Storage.open("file:///tmp/x%20y") == Storage.open(Path("/tmp/x y"))


@pytest.mark.parametrize(
    "place",
    [
        "s3://key:s3-cr3t@bucket/a",
        "s3://bucket/a?secret_key=s3-cr3t&region=x",
        "abfs://bucket@a.dfs.core.windows.net/a?sv=2022&sig=s3-cr3t",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(CheckpointError, match=r"bucket.*AWS_ACCESS_KEY_ID") as caught:
        Storage.open(place)
    assert "s3-cr3t" not in str(caught.value)


@pytest.mark.parametrize("place", ["nowhere://a/b", "s3://bucket/a?nonsense=1", "file:///tmp/what?/x"])
def test_a_uri_that_cannot_be_understood_is_refused(place: str) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be opened|%3F"):
        Storage.open(place)
