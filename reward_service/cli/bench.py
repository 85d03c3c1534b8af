"""python -m reward_service bench SCORER: pictures a second and latency, by group size and picture size."""

from __future__ import annotations

import argparse

from reward_service.cli.options import add_scorer, is_address, served_reward, table, whole_numbers

ABOUT = "measure pictures a second and latency at several group sizes and picture sizes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_scorer(parser, or_address=True)
    parser.add_argument("--groups", default="1,4,16", help="pictures a group (%(default)s)")
    parser.add_argument(
        "--sizes", default="256,512", help="heights and widths of the pictures, in pixels (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="time for each row, its first group aside (%(default)s)"
    )
    parser.add_argument(
        "--prompt", default='a red house with a sign that says "OPEN"', help="the prompt (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a table."""
    from reward_service.cli.target import address_target, scorer_target
    from reward_service.cli.timing import time_groups
    from reward_service.http.token import TokenSource

    groups, sizes = whole_numbers(arguments.groups), whole_numbers(arguments.sizes)
    if is_address(arguments.scorer):
        target = address_target(arguments.scorer, TokenSource(arguments.token_env, arguments.token_file))
    else:
        target = scorer_target(served_reward(arguments))
    rows = []
    for size in sizes:
        for count in groups:
            timing = time_groups(target, arguments.prompt, count, size, arguments.seconds)
            rows.append(
                [
                    f"{size}x{size}",
                    str(count),
                    str(timing.calls),
                    f"{timing.images_per_s:.1f}",
                    f"{timing.median_s * 1e3:.1f}",
                    f"{timing.slowest_s * 1e3:.1f}",
                ]
            )
    print(table(["pictures", "a group", "groups", "pictures/s", "median ms", "slowest ms"], rows))
    return 0
