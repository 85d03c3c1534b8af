"""The reward applications of the Ray cluster that this machine is in."""

from __future__ import annotations

import logging

import ray

from common.errors import RewardError
from reward_service.contract.results import Description
from reward_service.on_ray.handles import DEPLOYMENT, applications, ask_replica

_ANSWER_LIMIT_S = 10.0


def describe_applications() -> dict[str, Description | RewardError]:
    """What each reward application says of itself, or why it does not answer, by its name.

    Joins the cluster here and leaves it again, unless this process is in one already. Raises RewardError
    where there is none.
    """
    joined = not ray.is_initialized()
    if joined:
        try:
            ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise RewardError("No Ray cluster runs here. Start one, or give addresses (http...).") from error
    try:
        names = [name for name, app in applications().items() if DEPLOYMENT in app.deployments]
        return {name: _describe(name) for name in sorted(names)}
    finally:
        if joined:
            ray.shutdown()


def _describe(name: str) -> Description | RewardError:
    try:
        found: Description = ask_replica(name, "describe", _ANSWER_LIMIT_S)
    except RewardError as error:
        return error
    return found
