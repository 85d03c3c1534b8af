"""python -m reward_service status [ADDRESS ...]: what rewards say of themselves."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from common.errors import RewardError
from reward_service.cli.options import add_token, table

if TYPE_CHECKING:
    from reward_service.contract.results import Description

ABOUT = "what rewards behind addresses, or all rewards of this cluster, say of themselves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "addresses", nargs="*", metavar="ADDRESS", help="http addresses; without any, the Ray cluster here"
    )
    add_token(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask each and print a table, then settings. Returns 1 where one does not answer or is not ready."""
    answers = _by_address(arguments) if arguments.addresses else _of_cluster()
    good = {where: found for where, found in answers.items() if not isinstance(found, RewardError)}
    if good:
        head = ["where", "name", "kind", "scorer", "version", "digest", "ready"]
        print(table(head, [_row(where, found) for where, found in good.items()], left=len(head)))
    for where, found in answers.items():
        print(f"{where}: {found}" if isinstance(found, RewardError) else _settings(where, found))
    if not answers:
        print("No reward application runs on this cluster.")
    return 0 if len(good) == len(answers) and all(found.ready for found in good.values()) else 1


def _by_address(arguments: argparse.Namespace) -> dict[str, Description | RewardError]:
    from reward_service.cli.target import SOON
    from reward_service.http.client import HttpReward
    from reward_service.http.token import TokenSource

    token = TokenSource(arguments.token_env, arguments.token_file).read()
    found: dict[str, Description | RewardError] = {}
    for address in arguments.addresses:
        try:
            found[address] = HttpReward(address, token, deadline_s=10.0, retrying=SOON).describe()
        except RewardError as error:
            found[address] = error
    return found


def _of_cluster() -> dict[str, Description | RewardError]:
    from reward_service.on_ray.cluster import describe_applications

    return describe_applications()


def _settings(where: str, found: Description) -> str:
    shown = json.dumps(found.settings, ensure_ascii=False)
    refused = f"\n{where}: the last change of settings was refused: {found.refused}" if found.refused else ""
    return f"{where}: settings {shown}{refused}"


def _row(where: str, found: Description) -> list[str]:
    ready = "yes" if found.ready else "no"
    return [
        where,
        found.name,
        found.kind,
        found.scorer,
        found.stamp.version,
        found.stamp.digest[:12],
        ready,
    ]
