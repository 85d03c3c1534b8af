"""What an engine reports about its work. on_ray/metrics.py sends it to Prometheus through Ray."""

from __future__ import annotations


class Meter:
    """Takes the engine's counts, from its scoring thread and its event loop. This one reports to nobody."""

    def waiting(self, groups: int) -> None:
        """Groups in the queue now."""

    def batch(self, groups: int, failed: int, seconds: float) -> None:
        """A batch was scored: its groups, those of them without a score, and the scorer's seconds."""

    def answered(self, seconds: float) -> None:
        """A group was answered so many seconds after it came."""

    def turned_away(self) -> None:
        """A group came while the queue was full."""

    def swapped(self) -> None:
        """New settings answer from now on."""

    def refused(self) -> None:
        """A change of settings was refused."""
