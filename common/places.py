"""Places: paths of this machine and URIs, as people write them, and from the one to the other.

A place is a path, or a URI such as s3://bucket/prefix?key=value; what stands behind the "?" are settings of
the connection, and stays behind whatever is added to it. Imports nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""owner/name of something on the Hugging Face hub."""
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
_LOCAL_URI = re.compile(r"(sqlite(?:\+\w+)?:///|file://)(.*)", re.DOTALL)
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes that Linux takes."""


def expanded(place: str) -> str:
    """As a shell would give it: the home folder for a leading ~, values for $NAME and ${NAME}.

    So the path of a file:// or sqlite:/// URI; any other URI stays as it is. Raises ValueError where there is
    no such home folder or variable, and where the result can be no path.
    """
    if found := _LOCAL_URI.fullmatch(place):
        head, path = found.groups()
        beyond = path.removeprefix("/") if head == "file://" else path
        path = _escaped(_expanded_path(beyond)) if beyond.startswith(("~", "$")) else path
        return head + path
    return place if "://" in place else _expanded_path(place)


def _expanded_path(path: str) -> str:
    if "${" in _VARIABLE.sub("", path):
        raise ValueError(f"{path!r} names no variable behind '${{'; write ${{NAME}}")
    whole = os.path.expanduser(_VARIABLE.sub(_value, path))
    if whole.startswith("~"):
        raise ValueError(
            f"{path!r} begins with {whole.split('/')[0]!r}, and there is no such home folder; "
            f"write ./{path} for a folder of that name"
        )
    if "\0" in whole:
        raise ValueError(f"{path!r} holds a NUL character, which no path can")
    try:
        os.fsencode(whole)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path!r} has letters that file names of this locale have not ({error.encoding}); set "
            "PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        ) from error
    longest = max((len(os.fsencode(name)) for name in whole.split("/")), default=0)
    if longest > _LONGEST_NAME or len(os.fsencode(whole)) > _LONGEST_PATH:
        raise ValueError(f"{path[:60]!r}… is too long for a path: names have at most {_LONGEST_NAME} bytes")
    return whole


def _value(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if name not in os.environ:
        raise ValueError(f"the environment variable {name} in {found.string!r} is not set")
    return os.environ[name]


def is_rooted(text: str) -> bool:
    """Whether a text that need not be a path is one from the home folder or a variable: ~/models, $DATA/x."""
    head, slash, _ = text.partition("/")
    return bool(slash) and (head == "~" or _VARIABLE.fullmatch(head) is not None)


def sqlite_uri(file: Path) -> str:
    """SQLAlchemy's URI of a database file."""
    path = str(file.absolute())
    escaped = _escaped(path)
    # MLflow makes the folder of what stands behind sqlite:///, as it stands there.
    return f"{'sqlite' if escaped == path else 'sqlite+pysqlite'}:///{escaped}"


def _escaped(path: str) -> str:
    """For a URI that SQLAlchemy or this module reads. MLflow takes others for parts of a name."""
    return path.replace("%", "%25").replace("?", "%3F")


def quoted(uri: str) -> str:
    """A URI as people write it, with "#", which would cut it off, and all that no URI may hold encoded."""
    return quote(uri, safe=":/?@!$&'()*+,;=%~")


def local_file(place: str) -> Path | None:
    """The path of a place on this machine, a database's file included; None for what lies elsewhere."""
    found = _LOCAL_URI.fullmatch(place)
    if found and found[1].startswith("sqlite"):
        return Path(unquote(found[2].partition("?")[0]))
    return local_path(place)


def local_path(place: str) -> Path | None:
    """The path of a place on this machine, also of one written file:///folder; None for any other."""
    if "://" not in place:
        return Path(place)
    parts = urlsplit(place, allow_fragments=False)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def join_place(place: str, name: str) -> str:
    """The file or folder of that name in a place."""
    if "://" not in place:
        return str(Path(place) / name)
    parts = urlsplit(place, allow_fragments=False)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def split_place(place: str) -> tuple[str, str]:
    """The folder that a place lies in, and its name there."""
    if "://" not in place:
        path = Path(place) if Path(place).name else Path(place).resolve()
        return str(path.parent), path.name
    parts = urlsplit(place, allow_fragments=False)
    folder, _, name = parts.path.rstrip("/").rpartition("/")
    # urlunsplit drops the slashes of a scheme it does not know where the rest is empty.
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{folder}{query}", name


def is_single_file(path: str) -> bool:
    """Whether a path is that of a file with all weights of a model."""
    return path.endswith(".safetensors") and Path(path).is_file()


def why_no_model(path: str) -> str | None:
    """Why a path is no model, in words; None where it is a folder, the id of something on the hub, or a
    single file of weights."""
    return None if is_single_file(path) else why_no_folder(path)


def why_no_folder(path: str) -> str | None:
    """Why a path is neither a folder nor the id of something on the hub, in words; None where it is one.

    What is not there, in a folder that is, is meant as a path.
    """
    place = Path(path)
    if place.is_dir() or (HUB_ID.fullmatch(path) and not place.parent.is_dir()):
        return None
    if place.exists():
        return "a file, where a folder or a hub id is needed"
    near = near_paths(place, Path.is_dir)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"neither a folder that is there nor a hub id such as owner/name{hint}"


def near_paths(path: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """What lies beside a path that is not there and has a name like it, most alike first; nothing hidden."""
    try:
        names = sorted(item.name for item in path.parent.iterdir() if wanted(item) and item.name[0] != ".")
    except OSError:
        return []
    return [str(path.parent / name) for name in get_close_matches(path.name, names, n=3, cutoff=0.4)]
