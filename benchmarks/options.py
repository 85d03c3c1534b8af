"""The command line that all benchmarks share, and the configuration they measure: the quickstart's."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import RESULTS, Result
from common.config.load import load_config
from common.config.schema import Config
from common.config.training import ModelSection, SamplingSection
from common.errors import ConfigError, PrdpError
from common.model.families import check_model
from common.terminal import complain
from driver.command_line import writable_folder

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


@dataclass(frozen=True)
class Options:
    """What was asked for. config: the quickstart's, of the model asked for; command: as it was typed."""

    config: Config
    repeats: int
    warm_ups: int
    out: Path
    command: str


def parse_options(name: str, about: str, repeats: int, arguments: Sequence[str]) -> Options:
    """Read the command line. Raises ConfigError or ModelError where a setting or the model cannot work."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--model", default="models/tiny-sd", help="pipeline folder (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=at_least_one, default=repeats, help="timed turns (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-ups", type=at_least_one, default=2, help="turns before them (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=out_folder,
        default=str(RESULTS),
        help="folder of the result files (default: %(default)s)",
    )
    parser.add_argument(
        "--config", type=Path, default=QUICKSTART, help="configuration (default: %(default)s)"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings of the configuration to change"
    )
    given = parser.parse_args(arguments)
    check_model(ModelSection(path=given.model), SamplingSection())
    config = load_config(given.config, [f"model.path={given.model}", *given.settings])
    return Options(config, given.repeats, given.warm_ups, given.out, command_of(name, arguments))


def run(
    name: str,
    about: str,
    repeats: int,
    measure: Callable[[Options], Result],
    arguments: Sequence[str],
) -> int:
    """Measure, print, write. Returns the exit status: 0 measured, 2 an error that the text explains."""
    try:
        options = parse_options(name, about, repeats, arguments)
        measure(options).publish(options.out)
    except PrdpError as error:
        complain(f"{type(error).__name__}: {error}")
        return 2
    return 0


def command_of(name: str, arguments: Sequence[str]) -> str:
    """The command of a benchmark, to be typed again."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *arguments])


def out_folder(text: str) -> Path:
    """An argument that names a folder for results, which is made. Raises argparse.ArgumentTypeError."""
    try:
        return writable_folder("--out", Path(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def at_least_one(text: str) -> int:
    """An argument that counts something. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
