"""The OpenAPI document's parts: both content types, every error, and the limits in numbers."""

from __future__ import annotations

from typing import Any

from fastapi.security import HTTPBearer

from reward_service.http.errors import STATUS_OF, ErrorBody
from reward_service.http.limits import HttpLimits
from reward_service.http.wire_arrow import ARROW_TYPE
from reward_service.http.wire_json import JSON_TYPE, DescriptionBody, ScoreReply

_ERRORS: dict[str, str] = {
    "bad_request": "The body is damaged: no JSON, or no Arrow stream.",
    "unauthorized": "No token or a wrong one; or, without a token, a caller from another machine.",
    "too_slow": "The body did not arrive in time.",
    "too_large": "A limit is exceeded: body, pictures, pixels or prompt.",
    "wrong_type": "The content type is neither of the two.",
    "wrong_content": "The body can be read, but is no group of pictures of one size.",
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
Scores the pictures of one prompt by one reward. Errors are JSON,
`{"error": {"code", "reason", "retry_after_s"}}`, except two short texts, sent before a request is looked at:
400 to what is no HTTP, and 503 where a server of one process has too many connections. With a token, every
path needs the header `Authorization: Bearer TOKEN`.

An Arrow request is a stream of one uncompressed record batch with one row a picture and the column
`pixels: fixed_size_binary(height * width * 3)`, uint8 RGB, rows from the top; the schema's metadata holds
`prompt`, `height` and `width`. The answer has the columns `rewards: float64` and
`differences: fixed_size_list<float64>[B]`; its metadata holds `residual`, `name`, `version`, `digest`,
`busy_s`, and `shadow` as the JSON answer has it.
"""

BEARER = HTTPBearer(auto_error=False, scheme_name="bearer", description="The server's token.")
"""For the document only, where the server has a token: the gate has looked at the header long before."""


def score_body(limits: HttpLimits) -> dict[str, Any]:
    """The request body of POST /v1/score, both content types."""
    picture = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
    group = {
        "type": "object",
        "required": ["prompt", "images"],
        "additionalProperties": False,
        "properties": {
            "prompt": {"type": "string", "maxLength": limits.prompt_characters},
            "images": {
                "type": "array",
                "items": picture,
                "minItems": 1,
                "maxItems": limits.images,
                "description": "PNG or JPEG files, all of one size, of at most "
                f"{limits.image_pixels} pixels each; RGB or grey, 8 bits, opaque, not animated.",
            },
        },
    }
    arrow = {"type": "string", "format": "binary", "maxLength": limits.body_bytes}
    content = {JSON_TYPE: {"schema": group}, ARROW_TYPE: {"schema": arrow}}
    about = f"One group, at most {limits.body_bytes} bytes. The answer has the request's content type."
    return {"requestBody": {"required": True, "description": about, "content": content}}


def score_responses() -> dict[int | str, dict[str, Any]]:
    """Every answer of POST /v1/score."""
    scored = {
        "description": "The score.",
        "model": ScoreReply,
        "content": {ARROW_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
    return {200: scored, **_errors(tuple(_ERRORS))}


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
