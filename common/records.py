"""JSON that was written from a dataclass of ours and comes back from a disk, its fields and types checked."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from common.errors import RunFolderError

Record = TypeVar("Record")


def parse_record(kind: type[Record], data: bytes) -> Record:
    """kind: a dataclass, or a list or mapping of them. Raises ValueError, in one line, where it is no JSON of
    that kind: not whole, no UTF-8, a field that is missing or of another type."""
    try:
        return TypeAdapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def read_record(path: Path, kind: type[Record], mend: str) -> Record | None:
    """What a file of a run folder holds; None where there is no such file.

    mend: what to do about a damaged one, in words. Raises RunFolderError where it cannot be read, or holds
    something else.
    """
    try:
        return parse_record(kind, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}). {mend}") from error
