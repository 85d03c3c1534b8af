"""The reward service from the shell: python -m reward_service try|check|bench|serve|status."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.errors import PrdpError
from common.terminal import complain, run_command

FAILED = 2
STOPPED = 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; importing this module loads nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="python -m reward_service",
        description="Rewards from the shell: try, check, measure, serve, ask.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about)

    one = command("try", "score images of one prompt")
    _add_scorer(one, or_address=True)
    one.add_argument("images", nargs="+", metavar="IMAGE", help="PNG or JPEG files")
    one.add_argument("prompt", metavar="PROMPT", help="the prompt they were made from")
    one.add_argument("--json", action="store_true", help="print JSON instead of a table")

    check = command("check", "test a scorer of your own: what it must keep, orders of magnitude and time")
    _add_scorer(check)
    _add_repeated(
        check,
        "--prompt",
        "PROMPT",
        "a prompt to test with; repeat it for more (without any: the scorer's check_prompts, or prompts that "
        "name objects and texts)",
    )

    bench = command("bench", "measure images a second and latency at several group sizes and image sizes")
    _add_scorer(bench, or_address=True)
    bench.add_argument("--groups", default="1,4,16", help="images a group (%(default)s)")
    bench.add_argument("--sizes", default="256,512", help="heights and widths in pixels (%(default)s)")
    bench.add_argument(
        "--seconds", type=float, default=2.0, help="time for each row, its first group aside (%(default)s)"
    )
    bench.add_argument(
        "--prompt", default='a red house with a sign that says "OPEN"', help="the prompt (%(default)s)"
    )

    serve = command("serve", "serve one reward over HTTP from this process, without a cluster")
    _add_scorer(serve)
    serve.add_argument("--name", default="reward", help="name of the reward, in its stamp (%(default)s)")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others need a token (%(default)s)"
    )
    serve.add_argument("--port", type=int, default=8000, help="port; 0 = any free one (%(default)s)")
    _add_repeated(serve, "--limit", "KEY=VALUE", "a limit of one request, such as images=32 or seconds=60")
    _add_token(serve)

    status = command(
        "status", "what rewards behind addresses, or all rewards of this cluster, say of themselves"
    )
    status.add_argument(
        "addresses", nargs="*", metavar="ADDRESS", help="http addresses; without any, the Ray cluster here"
    )
    _add_token(status)
    return parser


def main(given: Sequence[str]) -> int:
    """Returns the exit status: 0 well, 1 a check failed, 2 an error that the text explains, 130 stopped."""
    arguments = make_parser().parse_args(given)
    try:
        from reward_service.cli.commands import COMMANDS

        return COMMANDS[arguments.command](arguments)
    except PrdpError as error:
        complain(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        return STOPPED


def _add_scorer(parser: argparse.ArgumentParser, or_address: bool = False) -> None:
    address = ", or the address of a reward (http...)" if or_address else ""
    parser.add_argument(
        "scorer", metavar="SCORER", help=f"a shipped scorer's name, my_module:MyScorer{address}"
    )
    _add_repeated(parser, "--option", "KEY=VALUE", "a keyword argument of the scorer; repeat it for more")
    _add_repeated(
        parser, "--set", "KEY=VALUE", "a setting of the reward, such as pairs=20, threads=2 or timeout_s=30"
    )
    if or_address:
        _add_token(parser)


def _add_repeated(parser: argparse.ArgumentParser, flag: str, metavar: str, about: str) -> None:
    parser.add_argument(flag, action="append", default=[], metavar=metavar, help=about)


def _add_token(parser: argparse.ArgumentParser) -> None:
    """Where the bearer token is found; the token itself is never an argument."""
    parser.add_argument("--token-env", default="", metavar="NAME", help="environment variable of the token")
    parser.add_argument("--token-file", default="", metavar="PATH", help="file of one line with the token")


if __name__ == "__main__":
    run_command(main)
