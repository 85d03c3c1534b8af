"""Scored trajectories on disk, to replay offline: one Parquet file an epoch, one row a group.

A file is written aside and renamed when it is whole. Every row carries the SHA-256 of its content, and is a
row group of its own, so that writing and reading hold one group in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import RecordingError
from common.storage import flush
from common.trajectory import ScoredGroup
from driver.run.recording_rows import SCHEMA, BadRowError, check_group, from_row, to_row

FORMAT_VERSION = 2
# What Arrow raises: its own, plain OSError for what the file system refuses, and for names that are no UTF-8.
_ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class RecordingKind:
    """format: what its files say they are. finite: every number in them is, so that one can train on them."""

    format: str
    finite: bool


TRAINING = RecordingKind("prdp-trajectories", finite=True)
INSPECTION = RecordingKind("prdp-inspection", finite=False)
"""Groups that were left out of the training, to be looked at; nothing trains on them."""


class TrajectoryWriter:
    """Writes recordings into a folder, which it makes where there is none."""

    def __init__(self, folder: Path, kind: RecordingKind = TRAINING) -> None:
        self._folder = folder
        self._kind = kind

    def write_epoch(self, epoch: int, groups: Iterable[ScoredGroup]) -> Path:
        """Write epoch_<epoch>.parquet, replacing one of the same name, and return its path.

        Takes the groups one at a time. Raises RecordingError where there is no group, a group is not sound
        (arrays that do not fit or, for training, are not finite), or the disk refuses; then no part of a file
        is left.
        """
        path = self._folder / _file_name(epoch)
        aside = path.with_name(f".{path.name}.writing")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                _write_groups(file, path, groups, self._kind)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            flush(self._folder)
        except OSError as error:
            raise RecordingError(f"Cannot write the recording {path}: {error}") from error
        finally:
            # Where even this is refused, the error on its way says why.
            with suppress(OSError):
                aside.unlink(missing_ok=True)
        return path

    def write_sound(self, epoch: int, groups: Iterable[ScoredGroup]) -> None:
        """write_epoch of the groups that are sound; no file where none is. Raises RecordingError."""
        sound = filter(_is_sound, groups)
        for first in sound:
            self.write_epoch(epoch, chain([first], sound))


class Recording:
    """A folder of recorded epochs. epochs: their numbers, increasing."""

    def __init__(self, folder: Path, epochs: list[int], kind: RecordingKind) -> None:
        self.folder = folder
        self.epochs = epochs
        self._kind = kind

    def read_epoch(self, epoch: int) -> Iterator[ScoredGroup]:
        """The epoch's groups in the order of writing, each checked when it is read; arrays are read-only.

        Raises RecordingError naming the file and the row (from 1) for whatever is not as it was written.
        """
        if epoch not in self.epochs:
            raise RecordingError(f"{self.folder} has no epoch {epoch}; it has {_listed(self.epochs)}")
        path = self._path(epoch)
        with _open_file(path, self._kind) as file:
            for row, batch in _rows(path, file, SCHEMA.names):
                try:
                    yield from_row(batch, row, self._kind.finite)
                except BadRowError as error:
                    raise RecordingError(f"{path}, row {row}: {error}") from error

    def check(self, schedule: str, latent_shape: tuple[int, int, int]) -> None:
        """Refuse a recording that a learner of this step distribution and latent shape (C, H, W) cannot take.

        Looks at every row, but not at the latents. Raises RecordingError naming the file and the row.
        """
        for epoch in self.epochs:
            path = self._path(epoch)
            with _open_file(path, self._kind) as file:
                for row, batch in _rows(path, file, ["schedule", "shape"]):
                    reason = _misfit(batch.to_pylist()[0], schedule, latent_shape)
                    if reason:
                        raise RecordingError(f"{path}, row {row}: {reason}")

    def _path(self, epoch: int) -> Path:
        return self.folder / _file_name(epoch)


def open_recording(folder: Path | str, kind: RecordingKind = TRAINING) -> Recording:
    """Find the epochs of a recording and check that each file is whole and of this kind.

    Raises RecordingError for a folder that is missing or has no epoch file, and for a file that is not
    Parquet, Parquet of something else, truncated, or of a newer format version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordingError(f"There is no folder of recorded trajectories {folder}")
    numbers = [path.stem.removeprefix("epoch_") for path in folder.glob("epoch_*.parquet")]
    epochs = [int(text) for text in numbers if text.isdecimal() and text == f"{int(text):06d}"]
    if not epochs:
        raise RecordingError(f"{folder} has no recorded trajectories, no file like {_file_name(0)}")
    for epoch in sorted(epochs):
        _open_file(folder / _file_name(epoch), kind).close()
    return Recording(folder, sorted(epochs), kind)


def _is_sound(group: ScoredGroup) -> bool:
    try:
        check_group(group)
    except BadRowError:
        return False
    return True


def _file_name(epoch: int) -> str:
    return f"epoch_{epoch:06d}.parquet"


def _write_groups(file: object, path: Path, groups: Iterable[ScoredGroup], kind: RecordingKind) -> None:
    metadata = {"format": kind.format, "format_version": str(FORMAT_VERSION)}
    # Sampled latents do not compress, and statistics would store whole latents again.
    small = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    count = 0
    with pq.ParquetWriter(file, SCHEMA, write_page_checksum=True, **small) as writer:
        for group in groups:
            try:
                count += 1
                writer.write_batch(to_row(group, count, kind.finite), row_group_size=1)
            except BadRowError as error:
                raise RecordingError(f"Group {count} cannot be recorded in {path}: {error}") from error
        writer.add_key_value_metadata({**metadata, "groups": str(count)})
    if not count:
        raise RecordingError(f"There is no group to record in {path}")


def _open_file(path: Path, kind: RecordingKind) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except _ARROW_ERRORS as error:
        raise RecordingError(f"{path} is not a whole Parquet file: {error}") from error
    reason = _foreign(file, kind)
    if reason:
        file.close()
        raise RecordingError(f"{path} {reason}")
    return file


def _foreign(file: pq.ParquetFile, kind: RecordingKind) -> str:
    """Why the file is no recording of this kind that this code reads; "" where it is one."""
    pairs = (file.metadata.metadata or {}).items()
    metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs}
    version = metadata.get("format_version", "")
    if metadata.get("format") == INSPECTION.format != kind.format:
        return "holds groups that were left out of a training, to be looked at; nothing can train on them"
    if metadata.get("format") != kind.format or not version.isdecimal():
        return f"is Parquet, but no recording of trajectories (its metadata has no format {kind.format})"
    if int(version) != FORMAT_VERSION:
        return f"has format version {version}; this program reads version {FORMAT_VERSION}"
    if not file.schema_arrow.equals(SCHEMA):
        return f"has other columns than a recording: {', '.join(file.schema_arrow.names)}"
    if metadata.get("groups") != str(file.metadata.num_rows):
        return f"has {file.metadata.num_rows} rows of the {metadata.get('groups', '?')} that were written"
    return ""


def _rows(path: Path, file: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each row, from 1, as a batch of one row."""
    row = 0
    for part in range(file.num_row_groups):
        try:
            for batch in file.iter_batches(batch_size=1, row_groups=[part], columns=columns):
                batch.validate(full=True)
                row += 1
                yield row, batch
        except _ARROW_ERRORS as error:
            raise RecordingError(f"{path}, row {row + 1}: damaged: {error}") from error
    if row != file.metadata.num_rows:
        raise RecordingError(f"{path}: damaged: {row} rows of {file.metadata.num_rows} can be read")


def _misfit(row: dict[str, object], schedule: str, latent_shape: tuple[int, int, int]) -> str:
    shape = row["shape"]
    if row["schedule"] != schedule:
        return (
            f"sampled from the step distribution {row['schedule']}, this run's is {schedule}; "
            "the sections model and sampling must be as they were recorded"
        )
    if not isinstance(shape, list) or tuple(shape[1:]) != latent_shape:
        return f"latents (R, C, H, W) are {shape}, this run's model has (C, H, W) = {latent_shape}"
    return ""


def _listed(epochs: list[int]) -> str:
    return f"{len(epochs)} epochs from {epochs[0]} to {epochs[-1]}"
