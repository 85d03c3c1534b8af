"""What train.py, evaluate.py and sample.py share: arguments, --help, and errors as a person wants to read
them.

Imports nothing heavy, so that --help and a mistyped key answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from common.config.help import help_text
from common.config.load import load_config
from common.config.schema import Config
from common.errors import ConfigError, PrdpError
from common.places import expanded


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
                f"One configuration file is needed, {given} given.\nUsage: {self.usage}   (--help: "
                "every setting)"
            )
        return load_config(Path(self.words[0]), self.overrides)

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

    Raises ConfigError for an unknown flag or one without its value.
    """
    words, overrides, values = [], [], {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            print(help_text(usage, {**flags, **switches}))
            sys.exit(0)
        if word.startswith("--"):
            name, has_value, value = word.partition("=")
            if name not in {**flags, **switches}:
                there = ", ".join(["--help", *flags, *switches])
                raise ConfigError(f"Unknown option {name}. There are: {there}.\nUsage: {usage}")
            if name in switches:
                if has_value:
                    raise ConfigError(f"{name} takes no value, got {value!r}.")
                values[name] = ""
                continue
            if not has_value and not rest:
                raise ConfigError(f"{name} needs a value: {flags[name]}.")
            values[name] = _expanded(name, value if has_value else rest.pop(0))
        elif "=" in word and " " not in word.split("=")[0]:
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


# Read by the libraries when they are imported: their notes and loading bars would tear the progress display.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@contextmanager
def fail() -> Iterator[None]:
    """Print an error that a person can mend as plain text, not as a traceback; other errors keep theirs."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        yield
    except PrdpError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
