"""Prompt files of a data set on the hub: its training split, downloaded or from the cache."""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import PromptSetError

# The first of these formats that a data set has is read. Not .txt: licences and notes are texts too.
_FORMATS = (".parquet", ".jsonl", ".csv", ".tsv")
_TRAIN = re.compile(r"(?<![a-z])train(?![a-z])", re.IGNORECASE)
_OTHER_SPLIT = re.compile(r"(?<![a-z])(validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)


def download_files(data_set: str, revision: str) -> list[Path]:
    """The prompt files of a data set, sorted by name: those of the split "train" where names carry a split.

    Fetches files that may hold prompts and no others, first those with "train" in their names. With
    HF_HUB_OFFLINE=1 it takes what is in the cache.
    Raises PromptSetError where the data set cannot be had or holds no such file.
    """
    named = [(name, path) for name, path in _fetch(data_set, revision, "*train*") if _TRAIN.search(name)]
    if not named:
        every = _fetch(data_set, revision, "*")
        named = [(name, path) for name, path in every if not _OTHER_SPLIT.search(name)] or every
    if not named:
        formats = " or ".join(_FORMATS)
        raise PromptSetError(f"The data set {data_set} (revision {revision}) has no {formats} file")
    suffix = min((path.suffix for _, path in named), key=_FORMATS.index)
    return [path for _, path in named if path.suffix == suffix]


def _fetch(data_set: str, revision: str, pattern: str) -> list[tuple[str, Path]]:
    """Files of the known formats, each with its name inside the data set, sorted by name."""
    # Imported here because it takes a third of a second that a local file need not wait for.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    patterns = [pattern + suffix for suffix in _FORMATS]
    wanted = f"There is no file {data_set}, and the data set {data_set} at {revision}"
    try:
        where = snapshot_download(data_set, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except LocalEntryNotFoundError as error:
        raise PromptSetError(f"{wanted} is not in the cache, and the hub not reached: {error}") from error
    except (HFValidationError, OSError, HTTPError) as error:
        raise PromptSetError(f"{wanted} cannot be had from the hub: {error}") from error
    folder = Path(where)
    found = sorted(path for path in folder.rglob("*") if path.suffix in _FORMATS and path.is_file())
    return [(path.relative_to(folder).as_posix(), path) for path in found]
