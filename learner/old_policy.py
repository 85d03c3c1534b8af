"""Whose trajectories the learner accepts, and which policy is `old` in the clipped loss."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from common.errors import WeightsError
from common.trajectory import PolicyStamp

Anchor = tuple[Tensor, Tensor]


class Experience(Protocol):
    """Online or offline."""

    @property
    def stamps(self) -> tuple[PolicyStamp, ...]:
        """The published weights that are remembered, oldest first."""
        ...

    def published(self, stamp: PolicyStamp) -> None:
        """The learner has published these weights."""
        ...

    def check(self, stamp: PolicyStamp) -> None:
        """Raise WeightsError where a trajectory's stamp cannot be trained on."""
        ...

    def anchor(self, behaviour: Anchor, current: Anchor) -> Anchor:
        """(log pi_old, log pi_old - log pi_ref), each (B, T_s), of the policy that the clip holds on to.

        behaviour: of the policy that sampled; current: of the learner's policy at the first update of the
        epoch.
        """
        ...


class Online:
    """Trajectories of this run's own recent policies; old is the policy that sampled."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._stamps: tuple[PolicyStamp, ...] = ()

    @property
    def stamps(self) -> tuple[PolicyStamp, ...]:
        """The last `remembered` stamps, oldest first."""
        return self._stamps

    def published(self, stamp: PolicyStamp) -> None:
        """Keep the last `remembered` different stamps."""
        others = tuple(own for own in self._stamps if own != stamp)
        self._stamps = (*others, stamp)[-self._remembered :]

    def check(self, stamp: PolicyStamp) -> None:
        """Raise WeightsError unless the learner published exactly these weights, recently enough."""
        if stamp not in self._stamps:
            known = "; ".join(str(own) for own in self._stamps)
            raise WeightsError(
                f"A trajectory was sampled with {stamp}, which the learner did not publish. "
                f"It knows: {known}."
            )

    def anchor(self, behaviour: Anchor, current: Anchor) -> Anchor:
        """The behaviour policy."""
        return behaviour


class Offline:
    """Recorded trajectories of any policy on the same reference; old is the policy as the epoch starts."""

    stamps: tuple[PolicyStamp, ...] = ()

    def published(self, stamp: PolicyStamp) -> None:
        """Nothing to remember: recorded stamps are of other runs."""

    def check(self, stamp: PolicyStamp) -> None:
        """Every recorded stamp is accepted; the recording's reader has checked the file."""

    def anchor(self, behaviour: Anchor, current: Anchor) -> Anchor:
        """The policy as the epoch starts.

        The recorded one falls behind for good, and a clip around it would stop the training.
        """
        return current
