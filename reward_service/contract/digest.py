"""What identifies a scorer: a SHA-256 over its files and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Settings = Mapping[str, str | int | float | bool]


def digest_settings(settings: Settings) -> str:
    """SHA-256 (hex) of settings, independent of their order."""
    return digest_files((), settings)


def digest_files(files: Sequence[Path], settings: Settings) -> str:
    """SHA-256 (hex) over the settings and over name and content of each file, independent of their order."""
    total = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for file in sorted(files, key=lambda file: file.name):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"|{file.name}|{content}".encode())
    return total.hexdigest()
