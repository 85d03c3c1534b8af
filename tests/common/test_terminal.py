"""Showing text: as it is, without secrets, and never the end of a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.terminal import typed, visible

ROOT = Path(__file__).parents[2]
SHOW = """
from common.terminal import run_command, say
def main(arguments):
    for _ in range(5000):
        say("\\u732b \\x1b[31m [/b] :smile: " + arguments[0])
    print("to\\u732b")
    return 0
run_command(main)
"""


def shown(code: str, *words: str, redirect: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """The command through a shell. redirect: what stands behind it."""
    command = ["bash", "-o", "pipefail", "-c", f'"$0" -c "$@" {redirect}', sys.executable, code, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        timeout=60,
        check=False,
    )


def test_text_is_shown_as_it_is_but_for_what_a_terminal_obeys() -> None:
    done = shown(SHOW, "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == r"猫 \x1b[31m [/b] :smile: x"
    assert visible("a\tb\nc\r\x7f\x9b\u202e\u2066") == "a\tb\nc\\r\\x7f\\x9b\\u202e\\u2066"


@pytest.mark.parametrize(
    ("environ", "named"),
    [({"PYTHONIOENCODING": "latin-1"}, "latin-1"), ({"LC_ALL": "C", "PYTHONUTF8": "0"}, "ascii")],
)
def test_what_an_encoding_does_not_have_is_written_out_and_noted(environ: dict[str, str], named: str) -> None:
    done = shown(SHOW, "x", **environ)
    assert done.returncode == 0
    assert r"to\u732b" in done.stdout
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("redirect", "noted"),
    [
        ("> /dev/full", "No space left"),
        ("| head -1", ""),
        (">&-", ""),
        (">&- 2>&-", ""),
        ("> /dev/full 2>&1", ""),
    ],
)
def test_output_that_nobody_takes_ends_no_command(redirect: str, noted: str) -> None:
    done = shown(SHOW, "x", redirect=redirect)
    assert done.returncode == 0
    assert noted in done.stderr
    assert bool(done.stderr) == bool(noted)


CRASH = """
import logging, os, threading
from common.terminal import complain, run_command
def main(arguments):
    complain("Bearer " + os.environ["MY_TOKEN"])
    logging.getLogger("x").warning("%s refused", "postgresql://user:hunter2@db/x")
    try:
        raise OSError("401 for https://user:hunter2@host/x")
    except OSError as error:
        logging.getLogger("x").exception("again")
        raise ValueError("at " + os.environ["MY_TOKEN"]) from error
run_command(main)
"""


def test_neither_errors_nor_logs_nor_a_crash_show_secrets() -> None:
    done = shown(CRASH, MY_TOKEN="0123456789abcdef")
    assert done.returncode == 1
    assert done.stderr.count("OSError") >= 2
    assert "(hidden)@host" in done.stderr
    assert not any(secret in done.stderr for secret in ("hunter2", "0123456789abcdef"))


def test_words_of_the_command_line_are_text() -> None:
    assert typed("猫") == "猫"
    with pytest.raises(ConfigError, match="UTF-8"):
        typed("a\udcff")
