"""Recordings that are damaged, foreign or changed are refused with the file, the row and the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import RecordingError
from driver.run.recordings import open_recording
from tests.driver.run.test_recordings import read, write
from tests.scored_groups import assert_same_bits, make_group


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], None], metadata: dict[str, str]) -> None:
    """The same file by another writer, with changed rows and metadata, as a faulty program might."""
    table = pq.read_table(path)
    kept = {key.decode(): value.decode() for key, value in pq.ParquetFile(path).metadata.metadata.items()}
    rows = table.to_pylist()
    change(rows)
    changed = pa.Table.from_pylist(rows, schema=table.schema.remove_metadata())
    with pq.ParquetWriter(path, changed.schema) as writer:
        writer.write_table(changed)
        del kept["ARROW:schema"]
        writer.add_key_value_metadata({**kept, **metadata})


def _holds(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _version(version: str) -> Callable[[Path], None]:
    return lambda path: rewritten(path, lambda rows: None, {"format_version": version})


def _other_columns(path: Path) -> None:
    table = pq.read_table(path).drop_columns(["rewards"])
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"format": "prdp-trajectories", "format_version": "4", "groups": "2"})


class TestRefused:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path, make_group(0), make_group(1))

    def test_a_missing_folder_and_one_without_recordings(self, tmp_path: Path) -> None:
        for folder in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(RecordingError, match=str(folder)):
                open_recording(folder)

    @pytest.mark.parametrize(
        ("damage", "mentions"),
        [
            *((_holds(content), "") for content in (b"", b"not parquet at all", b"PAR1PAR1")),
            *((_cut(share), "") for share in (0.1, 0.5, 0.9, 0.999)),
            (lambda path: pq.write_table(pa.table({"prompt": ["a"]}), path), ""),
            (lambda path: rewritten(path, lambda rows: rows.pop(), {}), "1 rows of the 2"),
            (_other_columns, "columns"),
            (_version("3"), "earlier.*format 3"),
            (_version("5"), "later.*format 5"),
        ],
    )
    def test_what_is_no_whole_recording(
        self, path: Path, damage: Callable[[Path], object], mentions: str
    ) -> None:
        damage(path)
        with pytest.raises(RecordingError, match=rf"{path.name}.*{mentions}"):
            open_recording(path.parent)

    def test_rows_in_another_order(self, path: Path) -> None:
        rewritten(path, lambda rows: rows.reverse(), {})
        with pytest.raises(RecordingError, match=r"row 1: .*SHA-256"):
            read(path.parent)

    def test_a_faithful_copy_by_another_writer_is_read(self, path: Path) -> None:
        rewritten(path, lambda rows: None, {})
        for got, wanted in zip(read(path.parent), (make_group(0), make_group(1)), strict=True):
            assert_same_bits(got, wanted)

    @pytest.mark.parametrize(
        ("column", "value"),
        [("header", "{}"), ("arrays", []), ("arrays", [b"1234"]), ("sha256", "0" * 64)],
    )
    def test_a_changed_row(self, path: Path, column: str, value: Any) -> None:
        rewritten(path, lambda rows: rows[1].update({column: value}), {})
        groups = open_recording(path.parent).read_epoch(0)
        assert_same_bits(next(groups), make_group(0))
        with pytest.raises(RecordingError, match=rf"{path.name}, row 2: .*SHA-256"):
            next(groups)

    def test_flipped_bits_anywhere_are_found_or_without_effect(self, path: Path) -> None:
        data = path.read_bytes()
        generator = np.random.default_rng(0)
        footer = len(data) - int.from_bytes(data[-8:-4], "little") - 8
        places = [*generator.integers(4, footer, 150), *generator.integers(footer, len(data), 150)]
        refused = 0
        for place in places:
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(generator.integers(8))
            path.write_bytes(flipped)
            try:
                got = read(path.parent)
            except RecordingError as error:
                assert path.name in str(error)  # noqa: PT017 - either outcome is right
                refused += 1
                continue
            for group, wanted in zip(got, (make_group(0), make_group(1)), strict=True):
                assert_same_bits(group, wanted)
        assert refused > 200

    def test_each_flip_within_the_latents_is_found(self, path: Path) -> None:
        data = path.read_bytes()
        start = data.index(make_group(1).trajectory.latents.tobytes())
        for offset in (0, 1000, 2303):
            flipped = bytearray(data)
            flipped[start + offset] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(RecordingError, match=f"{path.name}, row 2"):
                read(path.parent)
