"""The two forms of a request's body: safetensors for machines, JSON with PNG or JPEG files for people.

Both hold one group: a prompt and its images. Pure; nothing a sender writes is executed or decompressed before
its size is known to be allowed.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import RewardError
from reward_service.http.errors import BAD_REQUEST, TOO_LARGE, WRONG_CONTENT, Refusal
from reward_service.http.images import decode_images, encode_png
from reward_service.http.limits import HttpLimits, Reserve
from reward_service.http.replies import first_problem

JSON_TYPE = "application/json"
SAFETENSORS_TYPE = "application/x-safetensors"

_SPARE_MARKS = 64
_LENGTH_BYTES = 8
_SPARE_HEADER = 4096
_LONGEST_ESCAPE = 12
"""Bytes of a character outside the basic plane as JSON may write it: two escapes."""


@dataclass(frozen=True)
class Group:
    """The images of one prompt, uint8 (B, height, width, 3) RGB, maybe read-only."""

    prompt: str
    images: NDArray[np.uint8]


class Wire(Protocol):
    """One content type of a request."""

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        ...

    def encode_group(self, group: Group) -> bytes:
        """A request body. Raises RewardError where the images have another form."""
        ...

    def decode_group(self, body: bytes, limits: HttpLimits, reserve: Reserve) -> Group:
        """A request body's group. Raises Refusal."""
        ...


class _Tensor(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    dtype: Literal["U8"]
    shape: tuple[int, int, int, Literal[3]]
    data_offsets: tuple[int, int]


class _Metadata(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    prompt: str


class _Header(BaseModel):
    """The JSON that a safetensors file begins with."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    metadata: Annotated[_Metadata, Field(alias="__metadata__")]
    images: _Tensor


@dataclass(frozen=True)
class SafetensorsWire:
    """A safetensors file: the tensor images, U8 (B, height, width, 3), and the prompt in its metadata."""

    content_type: str = SAFETENSORS_TYPE

    def encode_group(self, group: Group) -> bytes:
        """Raw pixels, so nothing is compressed, decoded or copied on arrival."""
        _check_images(group.images)
        images = np.ascontiguousarray(group.images)
        return safetensors.numpy.save({"images": images}, {"prompt": _sendable(group.prompt)})

    def decode_group(self, body: bytes, limits: HttpLimits, reserve: Reserve) -> Group:
        """The images are a read-only view of the body. Raises Refusal."""
        header, start = _read_header(body, limits.prompt_characters * _LONGEST_ESCAPE + _SPARE_HEADER)
        count, height, width, _ = header.images.shape
        limits.check_prompt(header.metadata.prompt)
        limits.check_count(count)
        limits.check_size(count, height, width)
        needed = count * height * width * 3
        if header.images.data_offsets != (0, needed) or len(body) - start != needed:
            raise Refusal(
                WRONG_CONTENT,
                f"{count} images of {height} x {width} are {needed} bytes; the header gives them "
                f"{list(header.images.data_offsets)} of the {len(body) - start} bytes behind it.",
            )
        pixels = np.frombuffer(body, np.uint8, needed, start)
        return Group(header.metadata.prompt, pixels.reshape(count, height, width, 3))


class ScoreBody(BaseModel):
    """One group: a prompt and its images, each a base64 PNG or JPEG file, all of one size."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: str
    images: list[str]


@dataclass(frozen=True)
class JsonWire:
    """{"prompt": text, "images": [base64 of a PNG or JPEG file, ...]}."""

    content_type: str = JSON_TYPE

    def encode_group(self, group: Group) -> bytes:
        """PNG files in base64; lossless."""
        _check_images(group.images)
        images = [base64.b64encode(encode_png(pixels)).decode("ascii") for pixels in group.images]
        return json.dumps({"prompt": _sendable(group.prompt), "images": images}).encode()

    def decode_group(self, body: bytes, limits: HttpLimits, reserve: Reserve) -> Group:
        """The files are decoded once their headers say that they are small enough. Raises Refusal."""
        _refuse_many_values(body, limits)
        try:
            read = ScoreBody.model_validate_json(body)
        except ValidationError as error:
            wanted = 'Send {"prompt": text, "images": [base64 of a PNG or JPEG file, ...]}.'
            raise _unreadable(error, "The body is no JSON", wanted) from error
        limits.check_prompt(read.prompt)
        limits.check_count(len(read.images))
        files = [_unbase64(text, number) for number, text in enumerate(read.images)]
        return Group(read.prompt, decode_images(files, limits, reserve))


SAFETENSORS: Wire = SafetensorsWire()
JSON: Wire = JsonWire()
WIRES: dict[str, Wire] = {wire.content_type: wire for wire in (JSON, SAFETENSORS)}
"""By content type of POST /v1/score."""


def _check_images(images: NDArray[np.uint8]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise RewardError(
            f"Images must be uint8 (B, height, width, 3), at least one, got {images.dtype} {images.shape}."
        )


def _sendable(prompt: str) -> str:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RewardError(f"The prompt holds half of a character: {error}.") from error
    return prompt


def _read_header(body: bytes, most_bytes: int) -> tuple[_Header, int]:
    """The header, and where the tensors begin. Raises Refusal."""
    size = int.from_bytes(body[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + size
    if start > len(body):
        raise Refusal(
            BAD_REQUEST, f"The body is no safetensors file: {len(body)} bytes and a header of {size}."
        )
    if size > most_bytes:
        raise Refusal(TOO_LARGE, f"The safetensors header has {size} bytes; allowed: {most_bytes}.")
    try:
        return _Header.model_validate_json(body[_LENGTH_BYTES:start]), start
    except ValidationError as error:
        wanted = "Send one tensor, images: U8 (B, height, width, 3), and the metadata prompt."
        raise _unreadable(error, "The safetensors header is no JSON", wanted) from error


def _unreadable(error: ValidationError, what: str, wanted: str) -> Refusal:
    """Unreadable JSON is a bad request; readable JSON of another form is wrong content."""
    if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
        return Refusal(BAD_REQUEST, f"{what}: {first_problem(error)}")
    return Refusal(WRONG_CONTENT, f"{first_problem(error)} {wanted}")


def _refuse_many_values(body: bytes, limits: HttpLimits) -> None:
    """A few megabytes of `[[],[],...` become gigabytes when parsed; a group needs a few marks only."""
    marks = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    allowed = limits.prompt_characters + limits.images + _SPARE_MARKS
    if marks > allowed:
        raise Refusal(
            TOO_LARGE,
            f"The JSON has {marks} commas and opening brackets; a group within the limits "
            f"has at most {allowed}.",
        )


def _unbase64(text: str, number: int) -> bytes:
    if text.startswith("data:"):
        raise Refusal(WRONG_CONTENT, f"Image {number} has a data: prefix; send only what follows base64, .")
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refusal(WRONG_CONTENT, f"Image {number} is not base64: {str(error)[:200]}.") from error
