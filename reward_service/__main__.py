"""The reward service from the shell: python -m reward_service try|check|bench|serve|status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from common.errors import PrdpError
from reward_service.cli import bench, check, serve, status, try_scorer

FAILED = 2
STOPPED = 130


class Command(Protocol):
    """A module of one command. Importing it must be quick: `run` imports what is heavy."""

    ABOUT: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it. Returns the exit status; raises PrdpError with a text for a person."""
        ...


COMMANDS: dict[str, Command] = {
    "try": try_scorer,
    "check": check,
    "bench": bench,
    "serve": serve,
    "status": status,
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m reward_service",
        description="Rewards from the shell: try, check, measure, serve, ask.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.ABOUT, description=command.ABOUT)
        command.add_arguments(own)
    return parser


def main(given: Sequence[str]) -> int:
    """Returns the exit status: 0 well, 1 a check failed, 2 an error that the text explains, 130 stopped."""
    arguments = make_parser().parse_args(given)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except PrdpError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
