"""Whose trajectories the learner accepts, and which policy is `old` in a clipped loss."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from common.errors import WeightsError
from common.trajectory import PolicyStamp


class OldPolicy(Protocol):
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

    def log_prob(self, sampled: Tensor, current: Tensor) -> Tensor:
        """log pi_old (B, T_s), of trajectories that were not sampled with the learner's weights of now.

        sampled: of the policy that sampled. current: of the learner's policy at the epoch's first update.
        """
        ...


class Online:
    """Trajectories of this run's recent policies; old is the policy that sampled."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._stamps: tuple[PolicyStamp, ...] = ()

    @property
    def stamps(self) -> tuple[PolicyStamp, ...]:
        """The last `remembered` stamps, oldest first."""
        return self._stamps

    def published(self, stamp: PolicyStamp) -> None:
        """Keep the last `remembered` different stamps."""
        others = tuple(known for known in self._stamps if known != stamp)
        self._stamps = (*others, stamp)[-self._remembered :]

    def check(self, stamp: PolicyStamp) -> None:
        """Raise WeightsError unless the learner published exactly these weights, recently enough."""
        if stamp not in self._stamps:
            known = "; ".join(str(one) for one in self._stamps)
            raise WeightsError(
                f"A trajectory was sampled with {stamp}, which the learner did not publish. "
                f"It knows: {known}."
            )

    def log_prob(self, sampled: Tensor, current: Tensor) -> Tensor:
        """Of the policy that sampled."""
        return sampled


class Offline:
    """Recorded trajectories of any policy on the same reference; old is the policy as the epoch starts."""

    stamps: tuple[PolicyStamp, ...] = ()

    def published(self, stamp: PolicyStamp) -> None:
        """Nothing to remember: recorded stamps are of other runs."""

    def check(self, stamp: PolicyStamp) -> None:
        """Every recorded stamp is accepted; the recording's reader has checked the file."""

    def log_prob(self, sampled: Tensor, current: Tensor) -> Tensor:
        """Of the policy as the epoch starts.

        The recorded one falls behind for good, and a clip around it would stop the training.
        """
        return current
