"""Secrets: what a person may read shows HIDDEN in their place. The one redaction of what leaves a process.

Whoever reads a secret calls `remember`; whoever lets a text out (terminal, log, tracker, an answer over HTTP)
calls `hide`. So no text on its way needs to know what is in it.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from common.config.yaml_text import read_yaml
from common.errors import ConfigError

HIDDEN = "(hidden)"
"""Stands where a secret would."""

_NAMES = (
    "token|secret|passw(?:or)?d|passphrase|authorization|credentials?"
    "|(?:api|access|account|private|secret)[_-]?key"
)
_SECRET = re.compile(rf"({_NAMES})$", re.IGNORECASE)
_MENTIONED = re.compile(_NAMES, re.IGNORECASE)
_GIVEN = re.compile(rf"({_NAMES})[\"']?\s*[:=]", re.IGNORECASE)
_SHORTEST, _SHORTEST_ANYWHERE = 4, 8
"""Shorter values are not looked for, in errors about options and in any text: many words hold them."""

# Everything is bounded, so that a long text costs no time that grows with its square.
_AFTER_SCHEME = r"(?:://|:\\/\\/|%3a%2f%2f)"
# A colon that begins a port begins no password; a password may hold "/" and "@" that nobody quoted.
_PASSWORD = r"(?::|%3a)(?!\d{1,5}(?:[/?#]|%2f|$))(?:[^\s@]{0,500}@(?:[^\s@/]{0,500}@)*|[^\s@]{0,500}?%40)"
# Of an http address a user alone is a token.
_IN_URI = re.compile(
    rf"(\b[a-z][a-z0-9+.-]{{0,30}}{_AFTER_SCHEME})[^\s/?#@:\[]{{0,200}}?{_PASSWORD}"
    rf"|(\bhttps?{_AFTER_SCHEME})[^\s/?#@:%(]{{1,500}}(?:@|%40)",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"""(\b(?:proxy-)?authorization["']?\s*[:=]\s*+["']?+(?:(?:bearer|basic|digest|token)\s+)?+)[^\s"',;(]+"""
    r"|(\bbearer\s+)(?=\S{0,500}\d)[a-z0-9._~+/=-]{16,}"
    rf"""|(\b[\w-]{{0,60}}(?:{_NAMES})(?:=|%3d|["']\s*:\s*["'])"""
    # Who holds a signed address needs nothing else: Azure calls the signature sig.
    r"""|(?:[?&;]|%3f|%26)(?:sig|[\w-]{0,30}signature)(?:=|%3d))"""
    # A value may hold %2F and its like; %26 is the "&" that ends it.
    r"""(?!(?:bearer|basic|digest|token) |%28)(?:(?!%26)[^\s&;,"'(])+""",
    re.IGNORECASE,
)
_known: set[str] = set()


def remember(secret: str) -> None:
    """From now on `hide` takes this secret out of every text, however the text writes it."""
    if len(secret) >= _SHORTEST_ANYWHERE:
        _known.update(_spellings(secret))


def names_secret(name: str) -> bool:
    """Whether what is called so is a secret."""
    return _SECRET.search(name) is not None


def remember_options(options: Mapping[str, Any]) -> None:
    """Remember each value of the options that is named like a secret, nested ones too."""
    secrets: set[str] = set()
    _hide(options, secrets)
    for secret in secrets:
        remember(secret)


def remember_environment(environ: Mapping[str, str]) -> None:
    """Remember the variables that are named like secrets, such as HF_TOKEN."""
    for name, value in environ.items():
        if names_secret(name):
            remember(value)


def hide(text: str) -> str:
    """The text with HIDDEN for remembered secrets and for what looks like one.

    That is: user and password of a URI, the value of an Authorization header, a bearer token, and what a
    query or JSON names like a secret.
    """
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _IN_URI.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}@", text)
    return _ELSEWHERE.sub(lambda found: f"{found[1] or found[2] or found[3]}{HIDDEN}", text)


class _HidingRecord(logging.LogRecord):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if self.exc_info:
            self.exc_text = hide("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:  # noqa: N802 - logging's
        return hide(super().getMessage())


def hide_in_logs() -> None:
    """Let every log record of this process pass through `hide`, with the traceback that it carries."""
    logging.setLogRecordFactory(_HidingRecord)


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
    spellings = {spelt for secret in secrets for spelt in _spellings(secret)}
    for spelt in sorted(spellings, key=len, reverse=True):
        error = error.replace(spelt, HIDDEN)
    return hide(error)


def _spellings(secret: str) -> set[str]:
    """As texts, errors, JSON and URIs write it."""
    return {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe=""), quote_plus(secret)}


def _hide(value: Any, secrets: set[str], named_secret: bool = False) -> Any:
    """The value without secrets; they are added to `secrets`."""
    if isinstance(value, Mapping):
        named = {name: named_secret or names_secret(str(name)) for name in value}
        shown = {name: _hide(inner, secrets, named[name]) for name, inner in value.items()}
        return {name: HIDDEN if named[name] else shown[name] for name in value}
    if isinstance(value, list | tuple):
        return [_hide(inner, secrets, named_secret) for inner in value]
    if named_secret:
        if not isinstance(value, bool) and len(str(value)) >= _SHORTEST:
            secrets.add(str(value))
        return HIDDEN
    return _hide_in_text(value, secrets) if isinstance(value, str) and _MENTIONED.search(value) else value


def _hide_in_text(text: str, secrets: set[str]) -> str:
    try:
        read = read_yaml(text, "text")
    except ConfigError:
        return HIDDEN if _GIVEN.search(text) else text
    shown = _hide(read, secrets) if isinstance(read, dict | list) else read
    return text if shown == read else json.dumps(shown)
