"""What the commands share: how a scorer and its options are given, and how a table is printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.config.yaml_text import read_yaml
from common.errors import ConfigError, RewardError

if TYPE_CHECKING:
    from reward_service.contract.settings import ServedReward

_SCALARS = (str, int, float, bool)


def add_scorer(parser: argparse.ArgumentParser, or_address: bool) -> None:
    """SCORER, --option, --set and, where an address will do instead, the token's place."""
    address = ", or the address of a reward (http...)" if or_address else ""
    parser.add_argument(
        "scorer", metavar="SCORER", help=f"a shipped scorer's name, my_module:MyScorer{address}"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a keyword argument of the scorer; repeat it for more",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the reward, such as pairs=20, threads=2 or timeout_s=30; repeat it for more",
    )
    if or_address:
        add_token(parser)


def add_token(parser: argparse.ArgumentParser) -> None:
    """Where the bearer token is found; the token itself is never an argument."""
    parser.add_argument("--token-env", default="", metavar="NAME", help="environment variable of the token")
    parser.add_argument("--token-file", default="", metavar="PATH", help="file of one line with the token")


def read_pairs(given: Sequence[str], flag: str) -> dict[str, str | int | float | bool]:
    """KEY=VALUE texts as values: numbers, true and false as in YAML, anything else as the text it is.

    Raises ConfigError for a text without "=" or a key given twice.
    """
    read: dict[str, str | int | float | bool] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{flag} {text!r}: needed is KEY=VALUE, such as {flag} path=models/clip.")
        if key in read:
            raise ConfigError(f"{flag} {key} is given twice.")
        read[key] = _value(value)
    return read


def is_address(scorer: str) -> bool:
    """Whether SCORER is the address of a reward that is served somewhere."""
    return scorer.startswith(("http://", "https://"))


def served_reward(arguments: argparse.Namespace) -> ServedReward:
    """The settings that SCORER, --option and --set describe. Raises ConfigError or RewardError."""
    from reward_service.contract.settings import read_settings

    settings: dict[str, Any] = dict(read_pairs(arguments.set, "--set"))
    taken = sorted({"scorer", "options"} & set(settings))
    if taken:
        raise ConfigError(f"--set {taken[0]}: give the scorer as SCORER and its options by --option.")
    options = read_pairs(arguments.option, "--option")
    return read_settings({"scorer": arguments.scorer, "options": options, **settings}, "--set")


def whole_numbers(text: str) -> list[int]:
    """ "1,4,16" -> [1, 4, 16]. Raises RewardError for anything but whole numbers from 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise RewardError(f"{text!r} must be whole numbers from 1 with commas between, such as 1,4,16.")
    return [int(part) for part in parts]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of columns under heads; the first `left` columns start at the left, the others end right."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _value(text: str) -> str | int | float | bool:
    try:
        value = read_yaml(text, "value")
    except ConfigError:
        return text
    return value if isinstance(value, _SCALARS) else text
