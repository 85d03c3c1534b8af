"""Which deaths of actors count: those that the actors themselves may be the cause of. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

WINDOW_S = 3600.0
SETTLE_S = 60.0
"""After so long Ray knows whether it was the whole node that died."""


@dataclass(frozen=True)
class Death:
    """Of one actor. at: seconds, monotonic; node: where it ran, "" where it had not said so yet.

    certain: Ray says that it died. Otherwise its process does not answer, and its node may be gone.
    """

    at: float
    node: str
    certain: bool


def of_last_hour(deaths: Sequence[Death], now: float, nodes: Collection[str]) -> list[Death]:
    """The deaths of the last hour, but for those of whole nodes. nodes: ids of the living ones.

    A node's death shows in its actors first, so this is asked anew at each death.
    """
    return [
        death for death in deaths if now - death.at <= WINDOW_S and (not death.node or death.node in nodes)
    ]


def counted(deaths: Sequence[Death], now: float) -> int:
    """How many of them were the actors' own."""
    return sum(death.certain or now - death.at >= SETTLE_S for death in deaths)
