"""Answers other than a score: one form for all of them, and never a traceback."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse

UNAUTHORIZED = "unauthorized"
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
    "bad_request": 400,
    UNAUTHORIZED: 401,
    "not_found": 404,
    "method_not_allowed": 405,
    TOO_SLOW: 408,
    "too_large": 413,
    WRONG_TYPE: 415,
    "wrong_content": 422,
    SCORER_FAILED: 424,
    BUSY: 429,
    INTERNAL: 500,
    NOT_READY: 503,
    LOST: 503,
    OVERLOADED: 503,
    TOO_LATE: 504,
}
"""HTTP status by error code."""

CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}
_TRACEBACK = "Traceback (most recent call last)"
_LONGEST_REASON = 1000
_NO_WAIT = 0.0


class Refusal(Exception):  # noqa: N818 - an answer, which may be nobody's error
    """A request that gets no score. retry_after_s: when to ask again; 0 where asking again is of no use."""

    def __init__(self, code: str, reason: str, retry_after_s: float = _NO_WAIT) -> None:
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


def refusal_response(refusal: Refusal) -> JSONResponse:
    """{"error": {"code", "reason", "retry_after_s"}} with its status, and Retry-After where it helps."""
    waits = refusal.retry_after_s > _NO_WAIT
    headers = {"Retry-After": str(math.ceil(refusal.retry_after_s))} if waits else {}
    if refusal.code == UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    error = {
        "code": refusal.code,
        "reason": one_line(refusal.reason),
        "retry_after_s": refusal.retry_after_s if waits else None,
    }
    return JSONResponse({"error": error}, STATUS_OF[refusal.code], headers)


def one_line(reason: str) -> str:
    """A reason fit for a client: one line, at most 1000 characters, without a traceback inside."""
    words = " ".join(reason.partition(_TRACEBACK)[0].split())
    text = words.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
