"""Files of this machine that are whole or not there, also after its power has failed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import RunFolderError


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file, and wait until it is on the disk. Makes its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file of a run folder aside, flushed, then rename it. Makes its folder.

    Raises RunFolderError where that fails; then what was there stays, and nothing is left aside.
    """
    aside = path.with_name(f".{path.name}.writing")
    with written_into(path):
        try:
            write_flushed(aside, data)
            os.replace(aside, path)
            flush_folder(path.parent)
        except OSError:
            # Where even this is refused, the error on its way says why.
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


@contextmanager
def written_into(place: Path) -> Iterator[None]:
    """Inside, a file or folder of a run folder is written. Raises RunFolderError where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"Cannot write {place}: {error}. Free space or mend its rights.") from error
