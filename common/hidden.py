"""Settings and errors that a person may read: what is named like a secret is not shown in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from common.config.yaml_text import read_yaml
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
    return _hide(value, set())


def error_without_secrets(error: str, options: Mapping[str, Any]) -> str:
    """An error's text with HIDDEN for each value of the options that is named like a secret."""
    secrets: set[str] = set()
    _hide(options, secrets)
    # Longest first, because one may be a part of another.
    for secret in sorted(secrets, key=len, reverse=True):
        error = error.replace(secret, HIDDEN)
    return error


def _hide(value: Any, secrets: set[str], named_secret: bool = False) -> Any:
    """The value without secrets; they are added to `secrets` as an error would write them."""
    if isinstance(value, Mapping):
        named = {name: named_secret or _SECRET.search(str(name)) is not None for name in value}
        shown = {name: _hide(inner, secrets, named[name]) for name, inner in value.items()}
        return {name: HIDDEN if named[name] else shown[name] for name in value}
    if isinstance(value, list | tuple):
        return [_hide(inner, secrets, named_secret) for inner in value]
    if named_secret:
        if not isinstance(value, bool) and len(str(value)) >= _SHORTEST:
            secrets |= {str(value), repr(str(value))[1:-1]}
        return HIDDEN
    return _hide_in_text(value, secrets) if isinstance(value, str) and _MENTIONED.search(value) else value


def _hide_in_text(text: str, secrets: set[str]) -> str:
    try:
        read = read_yaml(text, "text")
    except ConfigError:
        return HIDDEN if _GIVEN.search(text) else text
    shown = _hide(read, secrets) if isinstance(read, dict | list) else read
    return text if shown == read else json.dumps(shown)
