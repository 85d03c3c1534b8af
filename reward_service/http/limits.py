"""What one HTTP request may cost: the limits that the front enforces before anything is decoded."""

from __future__ import annotations

from pydantic import model_validator

from common.config.fields import Section, setting

MEBIBYTE = 1 << 20


class HttpLimits(Section):
    """Limits of one HTTP request, and of what all requests of a process hold together.

    The defaults leave room for groups of 42 pictures of 1024 x 1024 (16 of them are 48 MiB of pixels).
    """

    body_bytes: int = setting(
        128 * MEBIBYTE, "bytes", "Largest request body, and most pixels of a group times 3.", ge=1024
    )
    images: int = setting(64, "images", "Most pictures of a group.", ge=1)
    image_pixels: int = setting(2048 * 2048, "pixels", "Largest picture, height times width.", ge=1)
    prompt_characters: int = setting(10_000, "characters", "Longest prompt.", ge=1)
    seconds: float = setting(300.0, "s", "Longest wait for a score, the queue included.", gt=0.0)
    body_seconds: float = setting(60.0, "s", "Longest that a body may take to arrive.", gt=0.0)
    held_bytes: int = setting(
        1024 * MEBIBYTE, "bytes", "Bodies and decoded pictures of all requests at one time.", ge=1024
    )

    @model_validator(mode="after")
    def _one_group_fits(self) -> HttpLimits:
        if self.held_bytes < 2 * self.body_bytes:
            raise ValueError(
                f"held_bytes ({self.held_bytes}) must be at least twice body_bytes ({self.body_bytes})"
            )
        return self
