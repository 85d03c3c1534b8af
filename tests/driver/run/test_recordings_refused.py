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
from common.trajectory import (
    ScoredGroup,
)
from driver.run.recordings import TrajectoryWriter, open_recording
from tests.scored_groups import assert_same_bits, make_group


def write(folder: Path, *groups: ScoredGroup, epoch: int = 0) -> Path:
    return TrajectoryWriter(folder, base="base").write_epoch(epoch, groups)


def read(folder: Path, epoch: int = 0) -> list[ScoredGroup]:
    return list(open_recording(folder).read_epoch(epoch))


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


class TestRefused:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path, make_group(0), make_group(1))

    def test_a_missing_folder_and_one_without_recordings(self, tmp_path: Path) -> None:
        with pytest.raises(RecordingError, match="no folder of recorded trajectories"):
            open_recording(tmp_path / "nowhere")
        with pytest.raises(RecordingError, match=r"has no recorded trajectories, no file like epoch_000000"):
            open_recording(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1PAR1"])
    def test_what_is_no_parquet(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(RecordingError, match=rf"{path.name} is not a whole Parquet file"):
            open_recording(path.parent)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_file(self, path: Path, share: float) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(RecordingError, match="not a whole Parquet file"):
            open_recording(path.parent)

    def test_parquet_of_something_else(self, path: Path) -> None:
        pq.write_table(pa.table({"prompt": ["a"]}), path)
        with pytest.raises(RecordingError, match="Parquet, but no recording of trajectories"):
            open_recording(path.parent)

    @pytest.mark.parametrize(("version", "which"), [("2", "an earlier version"), ("4", "a later version")])
    def test_another_version_of_the_format_is_refused_with_what_to_do(
        self, path: Path, version: str, which: str
    ) -> None:
        rewritten(path, lambda rows: None, {"format_version": version})
        with pytest.raises(RecordingError, match=rf"{which}.*format {version}.*record anew"):
            open_recording(path.parent)

    def test_rows_in_another_order(self, path: Path) -> None:
        rewritten(path, lambda rows: rows.reverse(), {})
        with pytest.raises(RecordingError, match=r"row 1: .*SHA-256 differs"):
            read(path.parent)

    def test_a_file_that_lost_rows(self, path: Path) -> None:
        rewritten(path, lambda rows: rows.pop(), {})
        with pytest.raises(RecordingError, match="1 rows of the 2"):
            open_recording(path.parent)

    def test_other_columns(self, path: Path) -> None:
        table = pq.read_table(path).drop_columns(["rewards"])
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table)
            metadata = {"format": "prdp-trajectories", "format_version": "3", "groups": "2"}
            writer.add_key_value_metadata(metadata)
        with pytest.raises(RecordingError, match="other columns"):
            open_recording(path.parent)

    def test_a_faithful_copy_by_another_writer_is_read(self, path: Path) -> None:
        rewritten(path, lambda rows: None, {})
        for got, wanted in zip(read(path.parent), (make_group(0), make_group(1)), strict=True):
            assert_same_bits(got, wanted)

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            ("header", "{}", "SHA-256 differs"),
            ("arrays", [], "SHA-256 differs"),
            ("arrays", [b"1234"], "SHA-256 differs"),
            ("sha256", "0" * 64, "SHA-256 differs"),
        ],
    )
    def test_a_changed_row(self, path: Path, column: str, value: Any, reason: str) -> None:
        rewritten(path, lambda rows: rows[1].update({column: value}), {})
        groups = open_recording(path.parent).read_epoch(0)
        assert_same_bits(next(groups), make_group(0))
        with pytest.raises(RecordingError, match=rf"{path.name}, row 2: .*{reason}"):
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
