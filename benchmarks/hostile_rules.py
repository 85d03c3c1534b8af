"""What every answer to a hostile request must keep."""

from __future__ import annotations

import json
from typing import Protocol

from benchmarks.hostile_requests import SCORE, Request, Target

ALLOWED_5XX = (503, 504)
_ERROR_KEYS = {"code", "reason", "retry_after_s"}
_NO_BODY = ("HEAD",)
_OWN_ANSWERS = (b"Invalid HTTP request received.",)
"""Of the HTTP parser, before our application sees a request."""


class Answered(Protocol):
    """An HTTP answer."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """By lower-case name."""
        ...

    @property
    def body(self) -> bytes:
        """Whole."""
        ...


def broken_rules(request: Request, answer: Answered, target: Target) -> list[str]:
    """What is wrong with the answer, in words; empty where nothing is."""
    about = f"{request.kind}: {answer.status}"
    problems = []
    if answer.status >= 500 and answer.status not in ALLOWED_5XX:
        problems.append(f"{about}: a 5xx that is no back-pressure")
    if not request.authorized and answer.status != 401 and answer.body not in _OWN_ANSWERS:
        problems.append(f"{about}: no right token, and not refused for it")
    if answer.status == 200 and request.path == SCORE and not request.may_score:
        problems.append(f"{about}: scored")
    if b"Traceback" in answer.body or target.token.encode() in answer.body:
        problems.append(f"{about}: the answer shows a traceback or the token")
    if answer.status >= 300 and request.method not in _NO_BODY and answer.body not in _OWN_ANSWERS:
        problems += [f"{about}: {found}" for found in _wrong_form(answer)]
    documented = target.schema["paths"].get(request.path, {}).get(request.method.lower(), {}).get("responses")
    if documented is not None and str(answer.status) not in documented:
        problems.append(f"{about}: a status that the OpenAPI document does not name")
    return problems


def _wrong_form(answer: Answered) -> list[str]:
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        return [f"an error that is not in the documented form: {answer.body[:80]!r}"]
    if set(error) != _ERROR_KEYS or not error["code"] or not error["reason"]:
        return [f"an error with the keys {sorted(error)}"]
    waits = answer.status in (408, 429, *ALLOWED_5XX)
    return (
        []
        if (error["retry_after_s"] is not None) == waits == ("retry-after" in answer.headers)
        else ["a wait that does not fit the status"]
    )
