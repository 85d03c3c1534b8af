"""The way from a driver to one reward, whatever it is made of: the seam between Channel and transports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import ray

from common.trajectory import ScorerStamp
from reward_service.contract.results import Reply


@dataclass(frozen=True)
class Request:
    """One group. images: reference of uint8 (count, height, width, 3)."""

    prompt: str
    images: ray.ObjectRef
    count: int


class LineError(Exception):
    """Why a request has no reply; the text is for a person."""


class RefusedError(LineError):
    """Nobody took it: a full queue, or nobody there. Held against nobody. wait_s: what they ask for."""

    def __init__(self, reason: str, wait_s: float) -> None:
        super().__init__(reason)
        self.wait_s = wait_s

    def __reduce__(self) -> tuple[type[RefusedError], tuple[str, float]]:
        return type(self), (str(self), self.wait_s)


class LostError(LineError):
    """It was taken and never answered: the group itself may be what hangs or kills its scorer."""


class FailedError(LineError):
    """It was answered with an error; asking again may help."""


class FinalError(LineError):
    """Asking again cannot help."""


class Sending(Protocol):
    """A request on its way."""

    def taken(self, wait_s: float) -> list[ray.ObjectRef]:
        """The reference of the reply, once somebody has taken the request; nothing where that takes longer
        than wait_s seconds. Raises LineError."""
        ...

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        ...


class Line(Protocol):
    """One reward's transport. A failed line is as good as new for the next request."""

    @property
    def window(self) -> int:
        """Requests on their way at once, at most."""
        ...

    @property
    def limit_s(self) -> float:
        """Longest from the taking of a request to its reply."""
        ...

    @property
    def answers_as(self) -> ScorerStamp:
        """The stamp at the start; later ones have the same name."""
        ...

    def send(self, request: Request) -> Sending:
        """Ask. Does not wait. Raises LineError."""
        ...

    def read(self, reference: ray.ObjectRef, held_s: float) -> Reply:
        """The reply behind a reference that is ready, held_s seconds after it was taken. Raises LineError."""
        ...

    def state(self) -> str:
        """How the other side is doing, in words, for an error."""
        ...
