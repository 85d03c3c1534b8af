"""When one reward was asked about one group, and when it answered: for the timeline of an epoch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """number: of the group, in the order of submission. reward: its name in the configuration.

    sent_at, answered_at: seconds since 1970 by the driver's clock; what was tried again begins with the try
    that was answered. busy_s: the group's share of the scorer's work.
    """

    number: int
    reward: str
    sent_at: float
    answered_at: float
    busy_s: float
