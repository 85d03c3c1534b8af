"""The OpenAPI document's parts: both forms of a request, every error, and the limits in numbers."""

from __future__ import annotations

from typing import Any

from fastapi.security import HTTPBearer

from reward_service.contract.results import Description
from reward_service.contract.scorer import MOST_RATIO
from reward_service.http.errors import (
    BUSY,
    ERRORS,
    INTERNAL,
    NOT_ALLOWED,
    NOT_FOUND,
    NOT_READY,
    OVERLOADED,
    TOO_LATE,
    UNAUTHORIZED,
    ErrorBody,
)
from reward_service.http.limits import HttpLimits
from reward_service.http.replies import ScoreReply
from reward_service.http.wire import JSON_TYPE, SAFETENSORS_TYPE

_READING = (UNAUTHORIZED, NOT_ALLOWED, BUSY, NOT_READY, OVERLOADED, TOO_LATE, INTERNAL)
_SCORING = tuple(code for code in ERRORS if code != NOT_FOUND)

DESCRIPTION = """
Scores the images of one prompt by one reward. Errors are JSON,
`{"error": {"code", "reason", "retry_after_s"}}`, except a short text, 400, to what is no HTTP. With a token,
every path needs the header `Authorization: Bearer TOKEN`. Other paths are 404.

A safetensors request has one tensor, `images`: U8 (B, height, width, 3), RGB, rows from the top; its metadata
holds `prompt`. The answer is JSON whatever the request is.
"""

BEARER = HTTPBearer(auto_error=False, scheme_name="bearer", description="The server's token.")
"""For the document only, where the server has a token: the gate has looked at the header long before."""


def score_body(limits: HttpLimits) -> dict[str, Any]:
    """The request body of POST /v1/score, both content types."""
    file = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
    group = {
        "type": "object",
        "required": ["prompt", "images"],
        "additionalProperties": False,
        "properties": {
            "prompt": {"type": "string", "maxLength": limits.prompt_characters},
            "images": {
                "type": "array",
                "items": file,
                "minItems": 1,
                "maxItems": limits.images,
                "description": "PNG or JPEG files, all of one size, of at most "
                f"{limits.image_pixels} pixels each, one side at most {MOST_RATIO} times the other; RGB or "
                "grey, 8 bits, opaque, upright, not animated.",
            },
        },
    }
    tensors = {"type": "string", "format": "binary", "maxLength": limits.body_bytes}
    content = {JSON_TYPE: {"schema": group}, SAFETENSORS_TYPE: {"schema": tensors}}
    about = f"One group, at most {limits.body_bytes} bytes."
    return {"requestBody": {"required": True, "description": about, "content": content}}


def plain_responses(meaning: str) -> dict[int | str, dict[str, Any]]:
    """Every answer of a GET that says yes or why not."""
    return {200: {"description": meaning}, **_errors(_READING)}


def _errors(codes: tuple[str, ...]) -> dict[int | str, dict[str, Any]]:
    meanings: dict[int, list[str]] = {}
    for code in codes:
        status, meaning = ERRORS[code]
        meanings.setdefault(status, []).append(f"{code}: {meaning}")
    return {
        status: {"model": ErrorBody, "description": " ".join(texts)} for status, texts in meanings.items()
    }


SCORE_RESPONSES = {200: {"description": "The score.", "model": ScoreReply}, **_errors(_SCORING)}
"""Every answer of POST /v1/score."""

DESCRIBE_RESPONSES = {200: {"description": "The reward.", "model": Description}, **_errors(_READING)}
"""Every answer of GET /v1/describe."""
