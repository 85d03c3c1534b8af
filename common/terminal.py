"""What a command shows, and that showing it decides over nothing: the one way to the terminal.

Text that people wrote is text here: it is no markup, and its control characters are written out. What a
terminal, pipe or disk does not take is replaced or left out, and noted at the end; the command goes on.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, TextIO

from common.errors import ConfigError
from common.hidden import hide, hide_in_logs, remember_environment

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Also marks that turn the direction of writing: they make a text look like another one. Not line end and tab.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_REPLACING = "written out"
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_unencodable: set[str] = set()
"""Encodings that could not show a character."""


def visible(text: str) -> str:
    """The text with control characters written out, such as \\x1b: a terminal would obey them."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str) -> None:
    """Show a text, as it is, with a line end."""
    print(visible(text), flush=True)


def complain(text: str) -> None:
    """The same for an error."""
    print(visible(text), file=sys.stderr, flush=True)


def typed(word: str) -> str:
    """A word of the command line as text, also where the locale does not know its letters (LC_ALL=C).

    Raises ConfigError where it is no UTF-8 text.
    """
    try:
        return os.fsencode(word).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{word!r} is not UTF-8 text ({error.reason}).") from error


def beside_python(program: str) -> str:
    """A program of the environment of this Python, as it is typed in the current folder."""
    path, here = Path(sys.executable).with_name(program), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command with the process's arguments, and end the process with its exit status.

    From here on whatever is printed in the process, also by libraries, shows no secret and never fails.
    """
    codecs.register_error(_REPLACING, _write_out)
    sys.stdout, sys.stderr = _unbreakable(sys.stdout), _unbreakable(sys.stderr)
    sys.excepthook = _show_crash
    threading.excepthook = lambda crash: _show_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)
    remember_environment(os.environ)
    hide_in_logs()
    try:
        status = main(sys.argv[1:])
    finally:
        sys.stdout.flush()
        _note(sys.stdout)
    sys.exit(status)


def quiet_libraries() -> None:
    """Leave out the notes and loading bars of libraries, which would tear a display.

    Before their import: they read it then. What the environment says already stays.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def need_docstrings() -> None:
    """End the process, saying why, where transformers could not be imported: it reads docstrings."""
    if sys.flags.optimize > 1:
        complain(
            "python -OO (PYTHONOPTIMIZE=2) leaves out docstrings, which transformers reads. Use -O, or none."
        )
        sys.exit(2)


class _Raw(io.FileIO):
    """A file that takes all it is given. refused: why it could not write on; None where it could."""

    refused: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data) if self.refused is None else memoryview(data).nbytes
        except OSError as error:
            self.refused = error
            return memoryview(data).nbytes


class _Shown(io.TextIOWrapper):
    """A standard stream that hides secrets and never fails."""

    def __init__(self, handle: int, encoding: str) -> None:
        self.raw = _Raw(handle, "wb", closefd=False)
        writer = io.BufferedWriter(self.raw)
        super().__init__(writer, encoding=encoding, errors=_REPLACING, line_buffering=True)

    def write(self, text: str, /) -> int:
        super().write(hide(text))
        return len(text)


def _unbreakable(stream: TextIO | None) -> TextIO:
    """stream: None where the process was started with it closed. One without a file is left as it is."""
    if stream is None:
        return _Shown(os.open(os.devnull, os.O_WRONLY), "utf-8")
    try:
        return _Shown(stream.fileno(), stream.encoding)
    except io.UnsupportedOperation:
        return stream


def _write_out(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError):
        _unencodable.add(error.encoding)
    return codecs.backslashreplace_errors(error)


def _note(stream: TextIO) -> None:
    """Say what could not be shown as it is."""
    for encoding in sorted(_unencodable):
        complain(
            f"Characters that {encoding} does not have are written as \\x.. or \\u..; "
            "PYTHONIOENCODING=utf-8 shows them."
        )
    refused = stream.raw.refused if isinstance(stream, _Shown) else None
    # Whoever closes a pipe (head, less) has seen enough.
    if refused is not None and refused.errno != errno.EPIPE:
        complain(f"Not all of the output could be written: {refused.strerror}.")


def _show_crash(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    complain("".join(traceback.format_exception(kind, error, trace)).rstrip())
