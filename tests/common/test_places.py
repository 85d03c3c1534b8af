"""Paths and URIs are taken apart and put together alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CheckpointError
from common.places import join_place, local_path, split_place, whole_place
from common.storage import LocalStorage, open_storage

NAMES = st.text("abz019-_.", min_size=1, max_size=8).filter(lambda name: name.strip("."))
FOLDERS = ("/tmp/a", "runs", "s3://bucket", "s3://bucket/a/b?scheme=http&x=h:1", "gs://b/a", "file:///tmp/a")


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
    assert whole_place("a/b") == str(tmp_path / "a" / "b")
    assert whole_place("s3://bucket/a") == "s3://bucket/a"


def test_files_of_this_machine_are_local_however_they_are_written() -> None:
    assert local_path("file:///tmp/a%20b") == (Path("/tmp/a b"),)
    assert local_path("runs/a") == (Path("runs/a"),)
    assert local_path("s3://bucket/a") == ()
    assert open_storage("file:///tmp/x") == LocalStorage(Path("/tmp/x"))


@pytest.mark.parametrize("place", ["nowhere://a/b", "s3://bucket/a?nonsense=1"])
def test_a_uri_that_cannot_be_understood_is_refused(place: str) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be opened.*Write a folder, or a URI"):
        open_storage(place)
