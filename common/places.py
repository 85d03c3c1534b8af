"""Places of files as people write them: a path on this machine, or a URI such as s3://bucket/prefix?key=value.

What stands behind the "?" of a URI are settings of the connection; they stay behind whatever is added to it.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit


def is_uri(place: str) -> bool:
    """Whether the place has a scheme."""
    return "://" in place


def join_place(place: str, name: str) -> str:
    """The file or folder of that name in a place."""
    if not is_uri(place):
        return str(Path(place) / name)
    parts = urlsplit(place)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def split_place(place: str) -> tuple[str, str]:
    """The folder that a place lies in, and its name there."""
    if not is_uri(place):
        path = Path(place)
        path = path if path.name else path.resolve()
        return str(path.parent), path.name
    parts = urlsplit(place)
    folder, _, name = parts.path.rstrip("/").rpartition("/")
    return _with_path(parts, folder), name


def whole_place(place: str) -> str:
    """A place that means the same in every working folder."""
    return place if is_uri(place) else str(Path(place).resolve())


def local_path(place: str) -> tuple[Path, ...]:
    """The path of a place on this machine, also of one written file:///folder; empty for any other."""
    if not is_uri(place):
        return (Path(place),)
    parts = urlsplit(place)
    return (Path(unquote(parts.path)),) if parts.scheme == "file" else ()


def _with_path(parts: SplitResult, path: str) -> str:
    # urlunsplit drops the slashes of a scheme it does not know where the rest is empty.
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{path}{query}"
