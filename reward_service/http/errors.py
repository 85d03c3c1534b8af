"""Answers other than a score: one form for all of them, and never a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse

from common.hidden import hide

BAD_REQUEST = "bad_request"
UNAUTHORIZED = "unauthorized"
NOT_FOUND = "not_found"
NOT_ALLOWED = "method_not_allowed"
TOO_LARGE = "too_large"
WRONG_CONTENT = "wrong_content"
WRONG_TYPE = "wrong_type"
SCORER_FAILED = "scorer_failed"
BUSY = "busy"
NOT_READY = "not_ready"
LOST = "lost"
OVERLOADED = "overloaded"
TOO_LATE = "too_late"
TOO_SLOW = "too_slow"
INTERNAL = "internal"

ERRORS: dict[str, tuple[int, str]] = {
    BAD_REQUEST: (400, "The body is damaged: no JSON, or no safetensors file."),
    UNAUTHORIZED: (401, "No token or a wrong one; or, without a token, a caller from another machine."),
    NOT_FOUND: (404, "No such path."),
    NOT_ALLOWED: (405, "The path has another method, which the header Allow names."),
    TOO_SLOW: (
        408,
        "The body did not arrive in time, or was the slowest of many. Ask again after Retry-After seconds.",
    ),
    TOO_LARGE: (413, "A limit is exceeded: body, images, pixels or prompt."),
    WRONG_TYPE: (415, "The content type is neither of the two."),
    WRONG_CONTENT: (422, "The body can be read, but is no group of images of one size."),
    SCORER_FAILED: (
        424,
        "The scorer failed on this group. There is no score, and a failure is never a number.",
    ),
    BUSY: (429, "The queue is full. Ask again after Retry-After seconds."),
    INTERNAL: (500, "A fault of the server; its log says more."),
    NOT_READY: (503, "No scorer answers now. Ask again after Retry-After seconds."),
    LOST: (503, "The scorer's process died while it had this group, which may be what killed it."),
    OVERLOADED: (503, "Other requests fill the server. Ask again after Retry-After seconds."),
    TOO_LATE: (504, "No score in time."),
}
"""HTTP status and meaning by error code."""

_TRACEBACK = "Traceback (most recent call last)"
_LONGEST_REASON = 1000


class Refusal(Exception):  # noqa: N818 - an answer, which may be nobody's error
    """A request that gets no score. retry_after_s: when to ask again; 0 where asking again is of no use."""

    def __init__(self, code: str, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s


class ErrorDetail(BaseModel):
    """code: for programs; reason: for a person; retry_after_s: when to ask again, or null."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    code: str
    reason: str
    retry_after_s: float | None = None


class ErrorBody(BaseModel):
    """Every answer but a score, a description or a yes."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail


def refusal_response(refusal: Refusal, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """{"error": {"code", "reason", "retry_after_s"}} with its status, and Retry-After where it helps."""
    waits = refusal.retry_after_s > 0.0
    extra = {"Retry-After": str(math.ceil(refusal.retry_after_s))} if waits else {}
    if refusal.code == UNAUTHORIZED:
        extra["WWW-Authenticate"] = "Bearer"
    if refusal.code == TOO_SLOW:
        extra["Connection"] = "close"
    error = {
        "code": refusal.code,
        "reason": one_line(refusal.reason),
        "retry_after_s": refusal.retry_after_s if waits else None,
    }
    return JSONResponse({"error": error}, ERRORS[refusal.code][0], {**(headers or {}), **extra})


def one_line(reason: str) -> str:
    """A reason fit for a client: one line, at most 1000 characters, without a traceback inside."""
    words = " ".join(hide(reason.partition(_TRACEBACK)[0]).split())
    text = words.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
