"""The OpenAPI document's parts: both forms of a request, every error, and the limits in numbers."""

from __future__ import annotations

from typing import Any

from fastapi.security import HTTPBearer

from reward_service.http.errors import STATUS_OF, ErrorBody
from reward_service.http.limits import HttpLimits
from reward_service.http.replies import DescriptionBody, ScoreReply
from reward_service.http.wire import JSON_TYPE, SAFETENSORS_TYPE

_ERRORS: dict[str, str] = {
    "bad_request": "The body is damaged: no JSON, or no safetensors file.",
    "unauthorized": "No token or a wrong one; or, without a token, a caller from another machine.",
    "too_slow": "The body did not arrive in time.",
    "too_large": "A limit is exceeded: body, images, pixels or prompt.",
    "wrong_type": "The content type is neither of the two.",
    "wrong_content": "The body can be read, but is no group of images of one size.",
    "scorer_failed": "The scorer failed on this group. There is no score, and a failure is never a number.",
    "busy": "The queue is full. Ask again after Retry-After seconds.",
    "not_ready": "No scorer answers now. Ask again after Retry-After seconds.",
    "lost": "The scorer's process died while it had this group, which may be what killed it.",
    "overloaded": "Other requests fill the server's memory. Ask again after Retry-After seconds.",
    "too_late": "No score in time.",
    "internal": "A fault of the server; its log says more.",
}
_READING = ("unauthorized", "busy", "not_ready", "too_late", "internal")

DESCRIPTION = """
Scores the images of one prompt by one reward. Errors are JSON,
`{"error": {"code", "reason", "retry_after_s"}}`, except two short texts, sent before a request is looked at:
400 to what is no HTTP, and 503 where a server of one process has too many connections. With a token, every
path needs the header `Authorization: Bearer TOKEN`.

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
                f"{limits.image_pixels} pixels each; RGB or grey, 8 bits, opaque, not animated.",
            },
        },
    }
    tensors = {"type": "string", "format": "binary", "maxLength": limits.body_bytes}
    content = {JSON_TYPE: {"schema": group}, SAFETENSORS_TYPE: {"schema": tensors}}
    about = f"One group, at most {limits.body_bytes} bytes."
    return {"requestBody": {"required": True, "description": about, "content": content}}


def score_responses() -> dict[int | str, dict[str, Any]]:
    """Every answer of POST /v1/score."""
    return {200: {"description": "The score.", "model": ScoreReply}, **_errors(tuple(_ERRORS))}


def describe_responses() -> dict[int | str, dict[str, Any]]:
    """Every answer of GET /v1/describe."""
    return {200: {"description": "The reward.", "model": DescriptionBody}, **_errors(_READING)}


def plain_responses(meaning: str) -> dict[int | str, dict[str, Any]]:
    """Every answer of a GET that says yes or why not."""
    return {200: {"description": meaning}, **_errors(_READING)}


def _errors(codes: tuple[str, ...]) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status = STATUS_OF[code]
        before = found[status]["description"] + " " if status in found else ""
        found[status] = {"model": ErrorBody, "description": f"{before}{code}: {_ERRORS[code]}"}
    return found
