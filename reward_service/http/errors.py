"""Answers other than a score: one form for all of them, and never a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse

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

STATUS_OF: dict[str, int] = {
    BAD_REQUEST: 400,
    UNAUTHORIZED: 401,
    NOT_FOUND: 404,
    NOT_ALLOWED: 405,
    TOO_SLOW: 408,
    TOO_LARGE: 413,
    WRONG_TYPE: 415,
    WRONG_CONTENT: 422,
    SCORER_FAILED: 424,
    BUSY: 429,
    INTERNAL: 500,
    NOT_READY: 503,
    LOST: 503,
    OVERLOADED: 503,
    TOO_LATE: 504,
}
"""HTTP status by error code."""

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
    error = {
        "code": refusal.code,
        "reason": one_line(refusal.reason),
        "retry_after_s": refusal.retry_after_s if waits else None,
    }
    return JSONResponse({"error": error}, STATUS_OF[refusal.code], {**(headers or {}), **extra})


def one_line(reason: str) -> str:
    """A reason fit for a client: one line, at most 1000 characters, without a traceback inside."""
    words = " ".join(reason.partition(_TRACEBACK)[0].split())
    text = words.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
