"""The way from a driver to one reward, whatever it is made of."""

from __future__ import annotations

from typing import Protocol

from common.trajectory import ScorerStamp
from reward_service.contract.results import Reply


class RequestError(Exception):
    """Why a request has no reply; the text is for a person."""


class RefusedError(RequestError):
    """Nobody took it: a full queue, or nobody there. Held against nobody. wait_s: what they ask for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s

    def __reduce__(self) -> tuple[type[RefusedError], tuple[str, float]]:
        return type(self), (str(self), self.wait_s)


class LostError(RequestError):
    """It was taken and never answered: the group itself may be what hangs or kills its scorer."""


class FailedError(RequestError):
    """It was answered with an error; asking again may help."""


class FinalError(RequestError):
    """Asking again cannot help."""


class ImagesRef(Protocol):
    """Where a group's images are: a ray.ObjectRef of uint8 (B, height, width, 3)."""

    def hex(self) -> str:
        """Names the reference."""
        ...


class RewardTransport(Protocol):
    """One reward, asked over whatever wire. After a failure it is as good as new for the next request."""

    @property
    def window(self) -> int:
        """Requests on their way at once, at most."""
        ...

    @property
    def limit_s(self) -> float:
        """Longest that a request may be worked on once somebody has taken it."""
        ...

    @property
    def stamp(self) -> ScorerStamp:
        """Of the version at the start; later ones have the same name."""
        ...

    async def score(self, prompt: str, images: ImagesRef) -> Reply:
        """Ask once about one group. Raises RequestError. Cancelled, it withdraws the request."""
        ...

    async def absence(self) -> str | None:
        """Why nobody is there to answer, in words; None where somebody is and may be at work."""
        ...
