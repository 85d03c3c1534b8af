"""python -m reward_service try SCORER image.png ... "prompt": score pictures from the shell."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from reward_service.cli.options import add_scorer, is_address, served_reward, table

if TYPE_CHECKING:
    from reward_service.cli.target import Target
    from reward_service.contract.results import RewardScores

ABOUT = "score pictures of one prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_scorer(parser, or_address=True)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt they were made from")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Score them and print the numbers."""
    from reward_service.cli.picture_files import read_pictures

    pictures = read_pictures([Path(name) for name in arguments.images])
    part = pictures.score(_target(arguments), arguments.prompt)
    print(_as_json(part) if arguments.json else _as_text(part, arguments.images))
    return 0


def _target(arguments: argparse.Namespace) -> Target:
    from reward_service.cli.target import address_target, scorer_target
    from reward_service.http.token import TokenSource

    if is_address(arguments.scorer):
        return address_target(arguments.scorer, TokenSource(arguments.token_env, arguments.token_file))
    return scorer_target(served_reward(arguments))


def _as_json(part: RewardScores) -> str:
    return json.dumps(
        {
            "rewards": part.rewards.tolist(),
            "differences": part.differences.tolist(),
            "residual": part.residual,
            "stamp": vars(part.stamp),
        }
    )


def _as_text(part: RewardScores, names: list[str]) -> str:
    head = ["picture", "reward", *(f"over {number}" for number in range(1, len(names) + 1))]
    rows = [
        [
            f"{row + 1} {name}",
            f"{part.rewards[row]:.6g}",
            *(f"{value:.4g}" for value in part.differences[row]),
        ]
        for row, name in enumerate(names)
    ]
    alone = len(names) == 1
    shown = table(head[:2], [row[:2] for row in rows]) if alone else table(head, rows)
    stamp = f"version {part.stamp.version}, digest {part.stamp.digest[:12]}"
    return f"{shown}\n{stamp}" + (f", residual {part.residual:.4g}" if part.residual else "")
