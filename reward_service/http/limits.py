"""What one HTTP request may cost: limits that are enforced before anything is decoded or allocated."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import model_validator

from common.config.fields import Section, setting
from reward_service.contract.scorer import why_narrow
from reward_service.http.errors import TOO_LARGE, WRONG_CONTENT, Refusal

MEBIBYTE = 1 << 20

Reserve = Callable[[int], None]
"""Called with a number of bytes before so many are allocated; raises Refusal where there is no room."""


class HttpLimits(Section):
    """Limits of one HTTP request, and of what all requests of a process hold together.

    The defaults leave room for groups of 42 images of 1024 x 1024 (16 of them are 48 MiB of pixels).
    """

    body_bytes: int = setting(
        128 * MEBIBYTE, "bytes", "Largest request body, and most pixels of a group times 3.", ge=1024
    )
    images: int = setting(64, "images", "Most images of a group.", ge=1)
    image_pixels: int = setting(2048 * 2048, "pixels", "Largest image, height times width.", ge=1)
    prompt_characters: int = setting(10_000, "characters", "Longest prompt.", ge=1)
    seconds: float = setting(300.0, "s", "Longest wait for a score, the queue included.", gt=0.0)
    head_seconds: float = setting(
        30.0,
        "s",
        "Longest that a connection of a server of one process may be without the head of a request.",
        gt=0.0,
    )
    body_seconds: float = setting(60.0, "s", "Longest that a body may take to arrive.", gt=0.0)
    held_bytes: int = setting(
        1024 * MEBIBYTE, "bytes", "Bodies and decoded images of all requests at one time.", ge=1024
    )

    @model_validator(mode="after")
    def _one_group_fits(self) -> HttpLimits:
        if self.held_bytes < 2 * self.body_bytes:
            raise ValueError(
                f"held_bytes ({self.held_bytes}) must be at least twice body_bytes ({self.body_bytes})"
            )
        return self

    def check_prompt(self, prompt: str) -> None:
        """Raises Refusal where the prompt is too long."""
        if len(prompt) > self.prompt_characters:
            raise Refusal(
                TOO_LARGE, f"The prompt has {len(prompt)} characters; allowed: {self.prompt_characters}."
            )

    def check_count(self, images: int) -> None:
        """Raises Refusal where a group of so many images is not allowed."""
        if images < 1:
            raise Refusal(WRONG_CONTENT, "The group has no images; send at least one.")
        if images > self.images:
            raise Refusal(TOO_LARGE, f"The group has {images} images; allowed: {self.images}.")

    def check_size(self, images: int, height: int, width: int) -> None:
        """Raises Refusal where so many images of that size are not allowed."""
        if height < 1 or width < 1:
            raise Refusal(WRONG_CONTENT, f"Images cannot be {height} x {width}; sides are at least 1.")
        if narrow := why_narrow(height, width):
            raise Refusal(TOO_LARGE, narrow)
        if height * width > self.image_pixels:
            raise Refusal(
                TOO_LARGE,
                f"Images of {height} x {width} have {height * width} pixels; allowed: {self.image_pixels}.",
            )
        if images * height * width * 3 > self.body_bytes:
            raise Refusal(
                TOO_LARGE,
                f"{images} images of {height} x {width} are {images * height * width * 3} bytes of pixels; "
                f"allowed: {self.body_bytes}. Send smaller images, or fewer.",
            )
