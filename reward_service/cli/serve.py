"""python -m reward_service serve SCORER: one reward in one process that answers HTTP, without a cluster."""

from __future__ import annotations

import argparse

from reward_service.cli.options import add_scorer, add_token, read_pairs, served_reward

ABOUT = "serve one reward over HTTP from this process, without a cluster"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_scorer(parser, or_address=False)
    parser.add_argument("--name", default="reward", help="name of the reward, in its stamp (%(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others need a token (%(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 = any free one (%(default)s)"
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a limit of one request, such as images=32 or seconds=60; repeat it for more",
    )
    add_token(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer until it is stopped."""
    served = served_reward(arguments)

    from reward_service.contract.settings import read_section
    from reward_service.http.limits import HttpLimits
    from reward_service.http.standalone import run_server
    from reward_service.http.token import TokenSource

    limits = read_section(HttpLimits, read_pairs(arguments.limit, "--limit"), "--limit")
    token = TokenSource(arguments.token_env, arguments.token_file).read()
    run_server(arguments.name, served, arguments.host, arguments.port, token, limits)
    return 0
