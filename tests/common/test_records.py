"""What comes back from a disk is of the type that was written, or is refused by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from common.errors import RunFolderError
from common.records import parse_record, read_record


@dataclass(frozen=True)
class Part:
    """As a record has it."""

    share: float


@dataclass(frozen=True)
class Whole:
    """A record."""

    epoch: int
    parts: tuple[Part, ...]


def test_it_comes_back_as_it_was_written() -> None:
    assert parse_record(Whole, b'{"epoch": 3, "parts": [{"share": NaN}]}').epoch == 3
    assert parse_record(dict[int, Part], b'{"2": {"share": 1}}') == {2: Part(1.0)}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b'{"epoch": "3", "parts": []}', "epoch"),
        (b'{"epoch": 3, "parts": [{"share": null}]}', r"parts\.0\.share"),
        (b'{"epoch": 3}', "parts"),
        (b'{"epoch": 3, "pa', "EOF"),
        (b"[]", "object"),
        (b"", "EOF"),
        (b"\xff\xfe{}", "JSON"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, data: bytes, named: str) -> None:
    path = tmp_path / "file.json"
    assert read_record(path, Whole, "Delete it.") is None
    path.write_bytes(data)
    with pytest.raises(RunFolderError, match=rf"file\.json.*{named}.*Delete it\.") as caught:
        read_record(path, Whole, "Delete it.")
    assert "\n" not in str(caught.value)
