"""Settings and errors that a person may read: what is named like a secret is not shown in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from common.config.yaml_text import read_yaml, write_yaml
from common.errors import ConfigError

HIDDEN = "(hidden)"
"""Stands where a secret would."""

_NAMES = "token|secret|password|passphrase|authorization|credentials?|(?:api|access|private|secret)[_-]?key"
_SECRET = re.compile(rf"({_NAMES})$", re.IGNORECASE)
_MENTIONED = re.compile(_NAMES, re.IGNORECASE)
_GIVEN = re.compile(rf"({_NAMES})[\"']?\s*[:=]", re.IGNORECASE)
_SHORTEST = 4
"""Shorter values are not looked for in errors: they are no secrets, and parts of many words."""


def without_secrets(value: Any) -> Any:
    """The value with HIDDEN for each one whose name ends like a secret's, at any depth.

    Looks into mappings, lists, and texts that hold a YAML or JSON mapping or list, as options of mixes and
    judges do. A text that names a secret but cannot be read is hidden as a whole.
    """
    if isinstance(value, Mapping):
        return {name: HIDDEN if _is_secret(name) else without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return _text_without_secrets(value) if isinstance(value, str) else value


def error_without_secrets(error: str, options: Mapping[str, Any]) -> str:
    """An error's text with HIDDEN for each value of the options that is named like a secret."""
    # Longest first, because one may be a part of another.
    for secret in sorted(set(_secrets_in(options)), key=len, reverse=True):
        error = error.replace(secret, HIDDEN)
    return error


def _is_secret(name: object) -> bool:
    return _SECRET.search(str(name)) is not None


def _text_without_secrets(text: str) -> str:
    if not _MENTIONED.search(text):
        return text
    try:
        held = _held(text)
    except ConfigError:
        return HIDDEN if _GIVEN.search(text) else text
    shown = without_secrets(held)
    return text if shown == held else write_yaml(shown).strip()


def _held(text: str) -> Any:
    """The mapping or list that a text holds; empty where it holds none. Raises ConfigError."""
    held = read_yaml(text, "text")
    return held if isinstance(held, dict | list) else []


def _secrets_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        try:
            yield from _secrets_in(_held(value))
        except ConfigError:
            return
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets_in(inner)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts_in(inner) if _is_secret(name) else _secrets_in(inner)


def _texts_in(secret: Any) -> Iterator[str]:
    """What a secret looks like where it is written into an error."""
    if isinstance(secret, Mapping):
        for inner in secret.values():
            yield from _texts_in(inner)
    elif isinstance(secret, list | tuple):
        for inner in secret:
            yield from _texts_in(inner)
    elif not isinstance(secret, bool) and len(str(secret)) >= _SHORTEST:
        yield str(secret)
        yield repr(str(secret))[1:-1]
