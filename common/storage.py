"""Named folders of files that are whole or not there, on this machine or in a remote store.

A folder becomes whole at one moment: on this machine when it is renamed, in a remote store when its
COMMIT_FILE is written, which is the last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.disk import flush_folder, write_flushed
from common.places import local_path
from common.storage_arrow import ArrowStorage

COMMIT_FILE = "run.json"
"""Without it a remote folder is an unfinished one."""
PARTIAL = ".partial"
"""Ending of a local folder that is being written."""
REPLACED = ".replaced"
"""Ending of a local folder that is being deleted, or that another takes the place of."""


class Storage(Protocol):
    """One of the two. Every method raises OSError where the store cannot be reached, read or written."""

    @property
    def place(self) -> str:
        """Path or URI."""
        ...

    def names(self) -> list[str]:
        """Folders that were finished, sorted."""
        ...

    def unfinished(self) -> list[str]:
        """Folders that somebody began to write or to delete, and did not finish; sorted."""
        ...

    def read(self, name: str, file: str) -> bytes:
        """A file's content. Raises FileNotFoundError where there is no such file."""
        ...

    def write(self, name: str, files: Mapping[str, bytes]) -> None:
        """Contents by relative name, COMMIT_FILE among them. Replaces a folder of that name."""
        ...

    def delete(self, name: str) -> None:
        """Delete a finished folder."""
        ...

    def clean(self, own: Callable[[str], bool]) -> None:
        """Delete what is unfinished. own: whether a folder of that name is one of ours; others are left."""
        ...

    def check_writable(self) -> None:
        """Write a small file and delete it again."""
        ...

    def on_disk(self, name: str, folder: str) -> AbstractContextManager[Path]:
        """A folder of a folder as files on this machine, for as long as the context lasts."""
        ...


@dataclass(frozen=True)
class LocalStorage:
    """Written aside, flushed to disk, then renamed."""

    root: Path

    @property
    def place(self) -> str:
        """The path."""
        return str(self.root)

    def names(self) -> list[str]:
        """See Storage."""
        return sorted(name for name in self._folders() if not name.startswith("."))

    def unfinished(self) -> list[str]:
        """See Storage."""
        partial = [name for name in self._folders() if name.startswith(".") and name.endswith(PARTIAL)]
        return sorted(name.removeprefix(".").removesuffix(PARTIAL) for name in partial)

    def read(self, name: str, file: str) -> bytes:
        """See Storage."""
        return (self.root / name / file).read_bytes()

    def write(self, name: str, files: Mapping[str, bytes]) -> None:
        """See Storage."""
        aside, replaced = self.root / f".{name}{PARTIAL}", self.root / f".{name}{REPLACED}"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            for file, data in files.items():
                write_flushed(aside / file, data)
            for folder in {(aside / file).parent for file in files} | {aside}:
                flush_folder(folder)
            if (self.root / name).exists():
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(self.root / name, replaced)
            os.replace(aside, self.root / name)
            flush_folder(self.root)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    def delete(self, name: str) -> None:
        """See Storage. Renamed first, so that no half of it is ever taken for a damaged folder."""
        replaced = self.root / f".{name}{REPLACED}"
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(self.root / name, replaced)
        shutil.rmtree(replaced)

    def clean(self, own: Callable[[str], bool]) -> None:
        """See Storage."""
        for name in self._folders():
            meant = name.removeprefix(".").removesuffix(PARTIAL).removesuffix(REPLACED)
            if name in (f".{meant}{PARTIAL}", f".{meant}{REPLACED}") and own(meant):
                shutil.rmtree(self.root / name)

    def check_writable(self) -> None:
        """See Storage."""
        self.root.mkdir(parents=True, exist_ok=True)
        probe = self.root / f".probe{PARTIAL}"
        write_flushed(probe / COMMIT_FILE, b"")
        shutil.rmtree(probe)

    @contextmanager
    def on_disk(self, name: str, folder: str) -> Iterator[Path]:
        """See Storage."""
        yield self.root / name / folder

    def _folders(self) -> list[str]:
        return [path.name for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []


def open_storage(place: str) -> Storage:
    """A folder of this machine, or what pyarrow.fs finds behind a URI. Raises CheckpointError."""
    for path in local_path(place):
        return LocalStorage(path)
    return ArrowStorage.open(place, COMMIT_FILE)
