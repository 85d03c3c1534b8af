"""Paths and URIs: made whole, taken apart and put together alike, escaped where one becomes the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from common.places import (
    expanded,
    is_rooted,
    join_place,
    local_file,
    local_path,
    near_paths,
    quoted,
    split_place,
    sqlite_uri,
    why_no_folder,
)

NAMES = st.text("abz019-_.#", min_size=1, max_size=8).filter(lambda name: name.strip("."))
FOLDERS = ("/tmp/a", "runs", "s3://bucket", "s3://bucket/a/b?scheme=http&x=h:1", "gs://b/a", "file:///tmp/a")
NASTY = ("a b", "what?", "50%20", "x#y", "a&b;c=d", "\u00fcn\u00ef \u732b", "[v2]", "it's", "$(x)", "c:d@e")
"""Names of folders that mean something in a URI."""


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/me", "DATA": "/data", "ODD": "/50%?"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("place", "whole"),
    [
        ("~/runs", "/home/me/runs"),
        ("$DATA/${DATA}x", "/data//datax"),
        ("runs $(date) $5 a~", "runs $(date) $5 a~"),
        ("owner/name", "owner/name"),
        ("", ""),
        ("sqlite:///~/x.db", "sqlite:////home/me/x.db"),
        ("sqlite:///$ODD/x.db", "sqlite:////50%25%3F/x.db"),
        ("file:///~/x", "file:///home/me/x"),
        ("s3://bucket/~/$DATA", "s3://bucket/~/$DATA"),
    ],
)
def test_a_path_is_what_a_shell_would_make_of_it(place: str, whole: str) -> None:
    assert expanded(place) == whole


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("$NOWHERE/x", "NOWHERE"),
        ("x/${HOME", "${NAME}"),
        ("~nobody-of-that-name/x", "./~nobody"),
        ("a\0b", "NUL"),
        ("x" * 256, "255"),
        ("x/" * 2048, "long"),
    ],
)
def test_what_can_be_no_path_is_refused(place: str, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        expanded(place)


def test_a_text_is_a_path_where_it_begins_like_one() -> None:
    texts = ("~/a", "$DATA/a", "${DATA}/a", "a/~/b", "a ~/b", "~", "costs $5/month", "$DATA", "clip")
    assert [is_rooted(text) for text in texts] == [True, True, True, *[False] * 6]


@pytest.mark.parametrize("name", NASTY)
def test_a_database_lies_where_its_path_says(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "x.db"
    uri = sqlite_uri(file)
    assert sqlalchemy.make_url(uri).database == str(file)
    assert local_file(uri) == file


def test_what_is_encoded_stays_so_and_what_must_be_is() -> None:
    assert quoted("s3://b/a b#c/%20?k=h:1&l=m") == "s3://b/a%20b%23c/%20?k=h:1&l=m"


def test_near_names_are_those_alike_and_not_hidden(tmp_path: Path) -> None:
    for name in ("tiny-sd", ".tiny-sdd", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "tiny-sdd.txt").touch()
    assert near_paths(tmp_path / "tiny-sdd", Path.is_dir) == [str(tmp_path / "tiny-sd")]
    assert near_paths(tmp_path / "zzz", Path.is_dir) == []
    assert near_paths(tmp_path / "no" / "x", Path.is_dir) == []


def test_a_hub_id_is_what_lies_in_no_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny-sd").mkdir(parents=True)
    (tmp_path / "file").touch()
    for found in ("models/tiny-sd", "models", "owner/name", str(tmp_path)):
        assert why_no_folder(found) is None
    for path, named in (("models/tiny", "models/tiny-sd"), ("a/b/c", "owner/name"), ("file", "a file")):
        assert named in str(why_no_folder(path))


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
    assert local_path("file:///tmp/a#b") == Path("/tmp/a#b")
    assert local_path("s3://bucket/a") is None
