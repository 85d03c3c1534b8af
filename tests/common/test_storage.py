"""Files that are whole or not there; paths and URIs that are taken apart and put together alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CheckpointError, RunFolderError
from common.storage import Storage, join_place, local_path, replace_file, split_place

NAMES = st.text("abz019-_.", min_size=1, max_size=8).filter(lambda name: name.strip("."))
FOLDERS = ("/tmp/a", "runs", "s3://bucket", "s3://bucket/a/b?scheme=http&x=h:1", "gs://b/a", "file:///tmp/a")


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


@given(st.sampled_from(FOLDERS), NAMES, NAMES)
def test_splitting_undoes_joining(folder: str, name: str, file: str) -> None:
    place = join_place(folder, name)
    assert split_place(place) == (folder, name)
    assert split_place(join_place(place, file)) == (place, file)


@pytest.mark.parametrize(
    ("place", "folder", "name"),
    [
        ("s3://bucket/a/e/?k=v", "s3://bucket/a?k=v", "e"),
        ("/tmp/a/e/", "/tmp/a", "e"),
        ("e", ".", "e"),
        ("s3://bucket?k=v", "s3://bucket?k=v", ""),
    ],
)
def test_places_are_split_before_the_last_name(place: str, folder: str, name: str) -> None:
    assert split_place(place) == (folder, name)


def test_a_dot_is_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_place(".") == (str(tmp_path.parent), tmp_path.name)


def test_files_of_this_machine_are_local_however_they_are_written() -> None:
    assert local_path("file:///tmp/a%20b") == Path("/tmp/a b")
    assert local_path("runs/a") == Path("runs/a")
    assert local_path("s3://bucket/a") is None
    assert Storage.open("file:///tmp/x") == Storage.open(Path("/tmp/x"))


@pytest.mark.parametrize("place", ["nowhere://a/b", "s3://bucket/a?nonsense=1"])
def test_a_uri_that_cannot_be_understood_is_refused(place: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened"):
        Storage.open(place)
