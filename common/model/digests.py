"""Digests of a pretrained model's files, part by part, without loading them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import ModelError
from common.model.folder import SENTENCEPIECE, WEIGHTS, find_weights, read_json

CACHE_FILE = "model_digests.json"
TEMPLATE = "chat_template.jinja"
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# They say who wrote a file, or how its tensors are stored; the networks are loaded the same without them.
_REMARKS = ("_diffusers_version", "_name_or_path", "transformers_version", "dtype", "torch_dtype")


def digest_parts(
    folder: Path, variant: str = "", cache: Path | None = None, single_file: Path | None = None
) -> dict[str, str]:
    """SHA-256 (hex) by part of what is loaded of a local pipeline folder or a hub's snapshot.

    The parts: those that model_index.json names and the trainer loads (unet or transformer, vae, text
    encoders, their tokenizers, scheduler), and "model_index" for that file's own settings. A part
    that is not there whole, such as one of a snapshot that was fetched in part, is left out. JSON counts by
    content, other files by their bytes.

    variant: model.variant. single_file: what holds the weights of all networks in the folder's place. cache:
    a folder that remembers files' digests by path, size and time, since large weights take seconds; None =
    read all. Raises ModelError where a file is damaged.
    """
    index = read_json(folder / "model_index.json", "so it is no diffusers pipeline folder")
    known = _Files(cache)
    settings = {name: value for name, value in index.items() if not isinstance(value, list)}
    digests = {"model_index": _digest([_content(settings)])}
    for part in (*WEIGHTS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"):
        if part in index and (folder / part).is_dir():
            pieces = _pieces(folder, part, variant, known, single_file)
            if pieces is not None:
                digests[part] = _digest(pieces)
    known.keep()
    return digests


def _pieces(
    folder: Path, part: str, variant: str, known: _Files, single_file: Path | None
) -> list[str] | None:
    """Digests of the part's files; None where one of them is missing."""
    if part == "scheduler":
        return _settings(folder / part, ("scheduler_config.json",)) or None
    if part in WEIGHTS:
        config = _settings(folder / part, ("config.json",))
        try:
            weights = (single_file,) if single_file else find_weights(folder, part, variant).files
        except ModelError:
            return None
        return [*config, *(known.digest(file) for file in weights)] if config else None
    place = folder / part
    sets = (("tokenizer.json",), (SENTENCEPIECE,), ("vocab.json", "merges.txt"))
    found = [names for names in sets if all((place / name).is_file() for name in names)]
    if not found:
        return None
    files = [place / name for name in (*found[0], TEMPLATE) if (place / name).is_file()]
    return [*_settings(folder / part, TOKENIZER_SETTINGS), *(known.digest(file) for file in files)]


def _settings(folder: Path, names: Iterable[str]) -> list[str]:
    found = [folder / name for name in names if (folder / name).is_file()]
    return [f"{path.name} {_content(read_json(path, 'so the part cannot be compared'))}" for path in found]


def _content(settings: dict[str, Any]) -> str:
    kept = {name: value for name, value in settings.items() if name not in _REMARKS}
    return json.dumps(kept, sort_keys=True)


def _digest(pieces: list[str]) -> str:
    return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()


class _Files:
    """Digests of files, remembered while size and time of a file stay what they were."""

    def __init__(self, cache: Path | None) -> None:
        self._path = None if cache is None else cache / CACHE_FILE
        self._known = self._read()
        self._new = False

    def digest(self, file: Path) -> str:
        """SHA-256 (hex) of the file's bytes."""
        path, status = str(file.resolve()), file.stat()
        key = [status.st_size, status.st_mtime_ns]
        known = self._known.get(path)
        if isinstance(known, list) and known[:2] == key:
            return str(known[2])
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self._known[path], self._new = [*key, digest], True
        return digest

    def keep(self) -> None:
        """Write what is known, if it is more than was read. Where that fails, it is read again next time."""
        if self._path is None or not self._new:
            return
        aside = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(self._known))
            aside.replace(self._path)

    def _read(self) -> dict[str, Any]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            return read_json(self._path, "so files are digested anew")
        except ModelError:
            return {}
