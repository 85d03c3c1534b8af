"""What both content types of the HTTP protocol share: a group, the errors of a request, and their checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import Float64, ScorerStamp
from reward_service.contract.results import NoShadow, Outcome, Reply, RewardScores
from reward_service.http.limits import HttpLimits

BAD_REQUEST = "bad_request"
TOO_LARGE = "too_large"
WRONG_CONTENT = "wrong_content"

_ANTISYMMETRY = 1e-6
_LONGEST_LABEL = 1000

Reserve = Callable[[int], None]
"""Called with a number of bytes before so many are allocated; raises where there is no room for them."""


class WireError(Exception):
    """A request that cannot be understood or is not allowed. code: for programs; reason: for a person."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Group:
    """The pictures of one prompt. pixels: uint8 (B, height, width, 3) RGB, maybe read-only."""

    prompt: str
    pixels: NDArray[np.uint8]


class Wire(Protocol):
    """One content type of the protocol, both directions. Pure; nothing a sender writes is ever executed."""

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        ...

    def encode_group(self, group: Group) -> bytes:
        """A request body."""
        ...

    def decode_group(self, body: bytes, limits: HttpLimits, reserve: Reserve) -> Group:
        """A request body's group. Raises WireError."""
        ...

    def encode_reply(self, part: RewardScores, busy_s: float, shadow: Outcome | NoShadow) -> bytes:
        """A reply body."""
        ...

    def decode_reply(self, body: bytes, images: int) -> Reply:
        """The reply to a group of so many pictures. Raises RewardError where it is not a sound one."""
        ...


def check_pixels(pixels: NDArray[np.uint8]) -> None:
    """Raises RewardError where they are not uint8 (B, height, width, 3) with B, height, width >= 1."""
    fits = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[-1] == 3 and pixels.size > 0
    if not fits:
        raise RewardError(
            f"Pictures must be uint8 (B, height, width, 3), at least one, got {pixels.dtype} {pixels.shape}."
        )


def check_prompt(prompt: str, limits: HttpLimits) -> None:
    """Raises WireError where the prompt is too long."""
    if len(prompt) > limits.prompt_characters:
        raise WireError(
            TOO_LARGE,
            f"The prompt has {len(prompt)} characters; allowed: {limits.prompt_characters}.",
        )


def check_count(images: int, limits: HttpLimits) -> None:
    """Raises WireError where a group of so many pictures is not allowed."""
    if images < 1:
        raise WireError(WRONG_CONTENT, "The group has no pictures; send at least one.")
    if images > limits.images:
        raise WireError(TOO_LARGE, f"The group has {images} pictures; allowed: {limits.images}.")


def check_size(images: int, height: int, width: int, limits: HttpLimits) -> None:
    """Raises WireError where so many pictures of that size are not allowed."""
    if height < 1 or width < 1:
        raise WireError(WRONG_CONTENT, f"Pictures cannot be {height} x {width}; sides are at least 1.")
    if height * width > limits.image_pixels:
        raise WireError(
            TOO_LARGE,
            f"Pictures of {height} x {width} have {height * width} pixels; allowed: {limits.image_pixels}.",
        )
    if images * height * width * 3 > limits.body_bytes:
        raise WireError(
            TOO_LARGE,
            f"{images} pictures of {height} x {width} are {images * height * width * 3} bytes of pixels; "
            f"allowed: {limits.body_bytes}. Send the group in smaller pictures, or fewer.",
        )


def check_part(part: RewardScores, images: int) -> RewardScores:
    """The part, differences made exactly antisymmetric; rewards (B,), differences (B, B) for B = images.

    Raises RewardError where a count or shape is wrong, a number is not finite, the differences are not
    antisymmetric, or the stamp does not name one version.
    """
    rewards = _shaped("rewards", part.rewards, (images,))
    differences = _shaped("differences", part.differences, (images, images))
    excess = float(np.abs(differences + differences.T).max())
    if excess > _ANTISYMMETRY * max(1.0, float(np.abs(differences).max())):
        raise RewardError(
            f"Its differences are not antisymmetric: d[i, j] + d[j, i] is up to {excess:g} and must be 0."
        )
    if not (np.isfinite(part.residual) and part.residual >= 0.0):
        raise RewardError(f"Its residual is {part.residual}, which is no finite number of at least 0.")
    _check_stamp(part.stamp)
    return RewardScores(rewards, (differences - differences.T) / 2.0, float(part.residual), part.stamp)


def _shaped(what: str, values: Float64, shape: tuple[int, ...]) -> Float64:
    if values.shape != shape:
        raise RewardError(f"Its {what} have the shape {values.shape}; needed is {shape}.")
    if not np.isfinite(values).all():
        raise RewardError(f"Its {what} are not all finite numbers.")
    return np.asarray(values, dtype=np.float64)


def _check_stamp(stamp: ScorerStamp) -> None:
    if not stamp.name or not stamp.version:
        raise RewardError(f"Its stamp names no reward or no version: {stamp}.")
    if max(len(stamp.name), len(stamp.version), len(stamp.digest)) > _LONGEST_LABEL:
        raise RewardError(f"Its stamp is longer than {_LONGEST_LABEL} characters.")
