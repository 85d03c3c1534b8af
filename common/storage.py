"""What is written so that it is whole or not there: files of this machine, folders here or in a remote store.

Where that is, is a place (common/places.py).
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from common.errors import CheckpointError, RunFolderError
from common.hidden import hide
from common.places import local_path, quoted

LOGGER = logging.getLogger(__name__)

COMMIT_FILE = "run.json"
"""A folder without it is an unfinished one."""
WAITS_S = (0.0, 5.0, 30.0)
"""Pauses before each try of a write to a remote store: a run of days outlives a minute without network."""
Content = bytes | NDArray[np.uint8]
"""Of a file. Arrays come out of the object store without a copy."""
_HELD: dict[int, Path] = {}
"""Locked files that say that the folders which they lie in are this process's, by open handle."""
_ASIDE = re.compile(r"\.(.+)(?:\.partial|\.replaced)")


@dataclass(frozen=True)
class Storage:
    """Named folders of files in one place. Every method raises OSError where the store refuses; those that
    write raise RunFolderError where the place lies in a run folder that is gone.

    In a remote store the commit file is written last and deleted first, so that a folder without it is known
    to be unfinished. On this machine a folder is written aside, flushed to the disk and renamed, so that it
    takes the place of an old one at one moment; and it is renamed before it is deleted.

    place: path or URI. root: its path in the file system. local: whether that is this machine's. waits_s:
    pauses before each try of a write.
    """

    place: str
    filesystem: fs.FileSystem
    root: str
    local: bool
    waits_s: tuple[float, ...] = (0.0,)

    @staticmethod
    def open(place: str | Path) -> Storage:
        """A folder of this machine, or what pyarrow.fs finds behind a URI. Raises CheckpointError."""
        path = local_path(str(place))
        if path is not None:
            if "://" in str(place) and "?" in str(place):
                raise CheckpointError(f"{place}: a file:// URI has nothing behind '?'; write %3F in a name.")
            return Storage(str(path), fs.LocalFileSystem(), str(path.absolute()), local=True)
        if hide(str(place)) != str(place):
            raise CheckpointError(
                f"{hide(str(place))} holds credentials, which every copy of it would show; give them by the "
                "environment (AWS_ACCESS_KEY_ID, …)."
            )
        try:
            filesystem, root = fs.FileSystem.from_uri(quoted(str(place)))
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{place} cannot be opened: {error}. Write a folder, or a URI such as s3://bucket/prefix, "
                "gs://bucket/prefix or s3://bucket/prefix?endpoint_override=host:port&scheme=http."
            ) from error
        return Storage(str(place), filesystem, root.rstrip("/"), local=False, waits_s=WAITS_S)

    def names(self) -> list[str]:
        """Folders that were finished, sorted."""
        return sorted(name for name, finished in self._folders().items() if finished)

    def unfinished(self) -> list[str]:
        """Folders that somebody began to write or to delete, and did not finish; sorted."""
        names = (name for name, finished in self._folders().items() if not finished)
        return sorted(_meant(name) for name in names if not name.endswith(".replaced"))

    def read(self, name: str, file: str) -> bytes:
        """A file's content. Raises FileNotFoundError where there is no such file."""
        with self.filesystem.open_input_file(f"{self.root}/{name}/{file}") as stream:
            return stream.read()

    def write(self, name: str, files: Mapping[str, Content]) -> None:
        """Contents by relative name, COMMIT_FILE among them. Replaces a folder of that name."""
        *earlier, last = self.waits_s
        for wait in earlier:
            time.sleep(wait)
            try:
                self._write_once(name, files)
            except OSError as error:
                LOGGER.warning("Could not write %s in %s: %s. It is tried again.", name, self.place, error)
            else:
                return
        time.sleep(last)
        self._write_once(name, files)

    def delete(self, name: str) -> None:
        """Delete a folder, if it is there."""
        folder = f"{self.root}/{name}"
        if self.local:
            check_held(Path(folder))
        if self.local and not name.startswith("."):
            folder = self._put_aside(name)
        commit, there = self.filesystem.get_file_info([f"{folder}/{COMMIT_FILE}", folder])
        if commit.type != fs.FileType.NotFound:
            self.filesystem.delete_file(commit.path)
        if there.type != fs.FileType.NotFound:
            self.filesystem.delete_dir(folder)

    def clean(self, ours: Callable[[str], bool]) -> None:
        """Delete what is unfinished. ours: whether a folder of that name is one of ours; others are left."""
        for name, finished in self._folders().items():
            if not finished and ours(_meant(name)):
                self.delete(name)

    def check_writable(self) -> None:
        """Write a small file and delete it again."""
        self._put(".probe", b"")
        self.filesystem.delete_file(f"{self.root}/.probe")

    @contextmanager
    def on_disk(self, name: str, folder: str) -> Iterator[Path]:
        """A folder of a folder as files on this machine, for as long as the context lasts."""
        source = f"{self.root}/{name}/{folder}"
        if self.local:
            yield Path(source)
            return
        below = fs.FileSelector(source, allow_not_found=True, recursive=True)
        with tempfile.TemporaryDirectory() as temporary:
            for info in self.filesystem.get_file_info(below):
                if info.type == fs.FileType.File:
                    file = f"{folder}/{info.path.removeprefix(f'{source}/')}"
                    path = Path(temporary) / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self.read(name, file))
            yield Path(temporary) / folder

    def _folders(self) -> dict[str, bool]:
        """Whether it was finished, by folder."""
        if self.local:
            # Not by pyarrow: it fails where another thread makes the folder at this moment.
            paths = Path(self.root).iterdir() if Path(self.root).is_dir() else ()
            return {path.name: not path.name.startswith(".") for path in paths if path.is_dir()}
        infos = self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        names = [info.base_name for info in infos if info.type == fs.FileType.Directory]
        commits = self.filesystem.get_file_info([f"{self.root}/{name}/{COMMIT_FILE}" for name in names])
        return {name: commit.type == fs.FileType.File for name, commit in zip(names, commits, strict=True)}

    def _write_once(self, name: str, files: Mapping[str, Content]) -> None:
        target = f".{name}.partial" if self.local else name
        self.delete(target)
        try:
            for file in sorted(files, key=lambda file: file == COMMIT_FILE):
                self._put(f"{target}/{file}", files[file])
            if self.local:
                self._rename(target, name, {str(Path(file).parent) for file in files})
        except OSError:
            if self.local:
                # Where even this is refused, the error on its way says why.
                with suppress(OSError):
                    self.delete(target)
            raise

    def _rename(self, aside: str, name: str, below: set[str]) -> None:
        root = Path(self.root)
        for folder in sorted(below, reverse=True):
            flush(root / aside / folder)
        old = self._put_aside(name)
        os.replace(root / aside, root / name)
        flush(root)
        self.delete(Path(old).name)

    def _put_aside(self, name: str) -> str:
        """Rename a local folder, where it is there; the path of what it is called now."""
        old = f".{name}.replaced"
        self.delete(old)
        with suppress(FileNotFoundError):
            os.replace(f"{self.root}/{name}", f"{self.root}/{old}")
        return f"{self.root}/{old}"

    def _put(self, file: str, data: Content) -> None:
        path = f"{self.root}/{file}"
        if self.local:
            check_held(Path(path))
        # An object store has no folders: markers of empty ones would only ask for more rights.
        if not isinstance(self.filesystem, fs.S3FileSystem | fs.GcsFileSystem):
            self.filesystem.create_dir(str(Path(path).parent), recursive=True)
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)
        if self.local:
            flush(Path(path))


def _meant(name: str) -> str:
    """The folder that one written or put aside is, or was, to be."""
    return _ASIDE.sub(r"\1", name)


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file of a run folder aside, flushed, then rename it. Makes its folder.

    Raises RunFolderError where that fails; then what was there stays, and nothing is left aside.
    """
    with written_into(path):
        put_file(path, data)


def put_file(path: Path, data: bytes) -> None:
    """replace_file for what a run can do without: raises OSError where the disk refuses, and RunFolderError
    only where the run folder is gone."""
    check_held(path)
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


@contextmanager
def written_into(place: Path) -> Iterator[None]:
    """Inside, a file or folder of a run folder is written. Raises RunFolderError where the disk refuses, or
    where the run folder is gone."""
    check_held(place)
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"Cannot write {place}: {error}. Free space or mend its rights.") from error


@contextmanager
def held(lock: Path, handle: int) -> Iterator[None]:
    """Inside, the folder of the lock file is this process's, see check_held. handle: of the file, locked."""
    _HELD[handle] = lock.absolute()
    try:
        yield
    finally:
        del _HELD[handle]


def check_held(place: Path) -> None:
    """Raise RunFolderError where the place lies in a folder that this process holds, and that is gone, or
    another has its name. Called before anything is written."""
    for handle, lock in _HELD.items():
        if not place.absolute().is_relative_to(lock.parent):
            continue
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(lock), os.fstat(handle)):
                continue
        raise RunFolderError(
            f"{lock.parent} is not the folder that this run began in: it was deleted, moved away, or another "
            "took its place. Nothing more is written. Where it was moved, move it back: the same command "
            "goes on with what is in it."
        )
