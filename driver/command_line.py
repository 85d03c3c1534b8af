"""What train.py, evaluate.py and sample.py share: arguments, --help, and errors as a person wants to read
them.

Imports nothing heavy, so that --help and a mistyped key answer at once.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from common.config.help import help_text
from common.config.load import load_config, meant_setting
from common.config.paths import check_it_lasts
from common.config.schema import Config
from common.errors import ConfigError, PrdpError
from common.places import expanded
from common.terminal import complain, quiet_libraries, say


@dataclass(frozen=True)
class Arguments:
    """words: what is neither a flag nor key=value; overrides: key=value; flags: the value of each flag that
    was given."""

    words: tuple[str, ...]
    overrides: tuple[str, ...]
    flags: dict[str, str]
    usage: str

    def config(self) -> Config:
        """The configuration in the one YAML file among the words. Raises ConfigError."""
        if len(self.words) != 1:
            given = f"{len(self.words)} ({', '.join(self.words)})" if self.words else "none"
            raise ConfigError(
                f"One configuration file is needed, {given} given.{self.not_understood(self.words)}\n"
                f"Usage: {self.usage}   (--help: every setting)"
            )
        return load_config(Path(self.words[0]), self.overrides)

    def not_understood(self, words: Sequence[str]) -> str:
        """A line for each of the words that was meant as a setting or an option, as far as can be told."""
        lines = []
        for word in words:
            key, equals, _ = word.partition("=")
            if word.startswith("--"):
                lines.append(f"\n{word}: options come before the -- after which everything is a word.")
            elif meant := meant_setting(key):
                lines.append(f"\n{word}: a setting is given as {meant}=VALUE, without spaces around '='.")
            elif equals:
                lines.append(f"\n{word}: no setting is called {key!r}.")
        return "".join(lines)

    def whole_number(self, flag: str, default: int, least: int) -> int:
        """The flag's value. Raises ConfigError where it is no whole number of at least `least`."""
        text = self.flags.get(flag, str(default))
        if not text.isdecimal() or int(text) < least:
            raise ConfigError(f"{flag} must be a whole number of at least {least}, got {text!r}.")
        return int(text)


def parse_arguments(
    arguments: Sequence[str],
    usage: str,
    flags: Mapping[str, str],
    switches: Mapping[str, str] = MappingProxyType({}),
) -> Arguments:
    """Split the command line. flags: what each --flag means, which takes a value; switches: the same of those
    that take none, whose value is "" where they are given. --help prints and exits.

    key=value is an override where the key is, or is nearly, one of the configuration, so that a prompt may
    hold "="; after -- everything is a word. Raises ConfigError for an unknown flag or one without its value.
    """
    words, overrides, values = [], [], {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            say(help_text(usage, {**flags, **switches}))
            sys.exit(0)
        if word == "--":
            words += rest
            break
        if word.startswith("--"):
            name, has_value, value = word.partition("=")
            if name not in {**flags, **switches}:
                meant = meant_setting(name.lstrip("-"))
                hint = f" A setting has no dashes: {meant}=VALUE." if meant else ""
                there = ", ".join(["--help", *flags, *switches])
                raise ConfigError(f"Unknown option {name}.{hint} There are: {there}.\nUsage: {usage}")
            if name in switches:
                if has_value:
                    raise ConfigError(f"{name} takes no value, got {value!r}.")
                values[name] = ""
                continue
            if not has_value and not rest:
                raise ConfigError(f"{name} needs a value: {flags[name]}.")
            values[name] = _expanded(name, value if has_value else rest.pop(0))
        elif "=" in word and meant_setting(word.split("=")[0]):
            overrides.append(word)
        else:
            words.append(word)
    return Arguments(tuple(words), tuple(overrides), values, usage)


def _expanded(flag: str, value: str) -> str:
    """Most flags name a file or folder, and a number has neither a ~ nor a variable."""
    try:
        return expanded(value)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}.") from error


@contextmanager
def fail() -> Iterator[None]:
    """Print an error that a person can mend as plain text, not as a traceback; other errors keep theirs."""
    quiet_libraries()
    try:
        yield
    except PrdpError as error:
        complain(f"\n{type(error).__name__}: {error}")


def writable_folder(flag: str, folder: Path) -> Path:
    """The folder, made where it is not there. Raises ConfigError where files cannot be written in it."""
    check_it_lasts(flag, str(folder), os.environ, Path.cwd())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{flag} {folder}: no files can be written there ({error.strerror}).") from error
    return folder


def check_writable(flag: str, file: Path) -> None:
    """Raise ConfigError where a file that is to be written later cannot be. Leaves what is there."""
    if not file.parent.is_dir():
        raise ConfigError(f"{flag} {file}: the folder {file.parent} does not exist.")
    writable_folder(flag, file.parent)
    try:
        if file.exists():
            with file.open("ab"):
                pass
    except OSError as error:
        raise ConfigError(f"{flag} {file} cannot be written: {error.strerror}.") from error
