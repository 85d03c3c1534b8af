"""Folders of files in whatever store pyarrow.fs reaches: s3://, gs://, and others.

Such a store cannot rename a folder at one moment. So the files come first and the commit file last: a folder
without it is unfinished, and what it lists by digest is proved by whoever reads it.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from common.errors import CheckpointError

LOGGER = logging.getLogger(__name__)
PROBE = ".probe"
WAITS_S = (0.0, 5.0, 30.0)
"""Pauses before each try of a write: a run of days outlives a minute without network."""


@dataclass(frozen=True)
class ArrowStorage:
    """place: the URI. root: its path within the file system. commit_file: what makes a folder whole."""

    place: str
    filesystem: fs.FileSystem
    root: str
    commit_file: str
    waits_s: tuple[float, ...] = WAITS_S

    @staticmethod
    def open(place: str, commit_file: str) -> ArrowStorage:
        """Raises CheckpointError where the URI cannot be understood."""
        try:
            filesystem, root = fs.FileSystem.from_uri(place)
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{place} cannot be opened: {error}. Write a folder, or a URI such as s3://bucket/prefix, "
                "gs://bucket/prefix or s3://bucket/prefix?endpoint_override=host:port&scheme=http."
            ) from error
        return ArrowStorage(place, filesystem, root.rstrip("/"), commit_file)

    def names(self) -> list[str]:
        """See common.storage.Storage."""
        return sorted(name for name, files in self._files().items() if self.commit_file in files)

    def unfinished(self) -> list[str]:
        """See common.storage.Storage."""
        return sorted(name for name, files in self._files().items() if self.commit_file not in files)

    def read(self, name: str, file: str) -> bytes:
        """See common.storage.Storage."""
        with self.filesystem.open_input_file(f"{self.root}/{name}/{file}") as stream:
            return stream.read()

    def write(self, name: str, files: Mapping[str, bytes]) -> None:
        """See common.storage.Storage. Tried as often as there are waits_s."""
        *earlier, last = self.waits_s
        for wait in earlier:
            time.sleep(wait)
            try:
                return self._write_once(name, files)
            except OSError as error:
                LOGGER.warning("Could not write %s in %s: %s. It is tried again.", name, self.place, error)
        time.sleep(last)
        return self._write_once(name, files)

    def delete(self, name: str) -> None:
        """See common.storage.Storage. The commit file goes first."""
        folder = f"{self.root}/{name}"
        info = self.filesystem.get_file_info(f"{folder}/{self.commit_file}")
        if info.type != fs.FileType.NotFound:
            self.filesystem.delete_file(info.path)
        self.filesystem.delete_dir(folder)

    def clean(self, own: Callable[[str], bool]) -> None:
        """See common.storage.Storage."""
        for name in filter(own, self.unfinished()):
            self.delete(name)

    def check_writable(self) -> None:
        """See common.storage.Storage."""
        self._write(PROBE, b"")
        self.filesystem.delete_file(f"{self.root}/{PROBE}")

    @contextmanager
    def on_disk(self, name: str, folder: str) -> Iterator[Path]:
        """See common.storage.Storage."""
        start = f"{self.root}/{name}/{folder}"
        with tempfile.TemporaryDirectory() as temporary:
            for info in self.filesystem.get_file_info(_all_below(start)):
                if info.type == fs.FileType.File:
                    relative = PurePosixPath(info.path).relative_to(start)
                    path = Path(temporary) / folder / relative
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self.read(name, f"{folder}/{relative}"))
            yield Path(temporary) / folder

    def _files(self) -> dict[str, set[str]]:
        """Relative file names by folder."""
        found: dict[str, set[str]] = {}
        for info in self.filesystem.get_file_info(_all_below(self.root)):
            name, _, file = info.path.removeprefix(f"{self.root}/").partition("/")
            if file and info.type == fs.FileType.File:
                found.setdefault(name, set()).add(file)
        return found

    def _write_once(self, name: str, files: Mapping[str, bytes]) -> None:
        if self.filesystem.get_file_info(f"{self.root}/{name}").type == fs.FileType.Directory:
            self.delete(name)
        for file in sorted(files, key=lambda file: file == self.commit_file):
            self._write(f"{name}/{file}", files[file])

    def _write(self, file: str, data: bytes) -> None:
        path = f"{self.root}/{file}"
        # An object store has no folders: markers of empty ones would only ask for more rights.
        if not isinstance(self.filesystem, fs.S3FileSystem | fs.GcsFileSystem):
            self.filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)


def _all_below(folder: str) -> fs.FileSelector:
    return fs.FileSelector(folder, recursive=True, allow_not_found=True)
