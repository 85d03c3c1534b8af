"""Texts of others inside Markdown, so that they are read as they are."""

from __future__ import annotations

import re

from common.terminal import visible

# An underscore inside a word is none of Markdown's.
_MEANT_BY_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def plain_markdown(text: str) -> str:
    """A text in one line, for a sentence or a cell of a table."""
    return _MEANT_BY_MARKDOWN.sub(r"\\\g<0>", visible(" ".join(text.split())))


def code(text: str) -> str:
    """A text in one line, as code; not for a cell of a table."""
    line = visible(" ".join(text.split()))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    room = " " if "`" in line else ""
    return f"{fence}{room}{line}{room}{fence}"
