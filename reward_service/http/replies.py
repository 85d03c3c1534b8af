"""What a client makes of an HTTP answer that is not a score: errors in words, waits, descriptions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.results import Description
from reward_service.http.errors import LOST
from reward_service.http.wire_json import StampBody

_LONGEST_WAIT_S = 3600.0
_LONGEST_REASON = 1000
_PASSING = frozenset({429, 502, 503, 504})
_FAILED = 500
_UNKNOWN = "unknown"
_ADVICE = {
    400: "Client and server may be of different versions.",
    401: "Check that client and server hold the same token (environment variable or file).",
    403: "A proxy in between may refuse it.",
    404: "Check the address: what stands before /v1/score, with the application's name where it has one.",
    413: "Send fewer or smaller pictures, or raise the server's limits.",
    415: "Client and server may be of different versions.",
    429: "Its queue is full: add replicas, or send fewer groups at a time.",
    500: "Look into the server's log.",
    502: "The proxy before it reaches no server.",
    503: "It is not ready or overloaded: look at its /v1/ready and its log.",
    504: "Scoring took too long: add replicas or raise its time limit.",
}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. content_type: without parameters."""

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes


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


class DescriptionBody(BaseModel):
    """A served reward in words."""

    model_config = ConfigDict(frozen=True)

    name: str
    stamp: StampBody
    scorer: str
    kind: str
    settings: dict[str, Any]
    refused: str
    ready: bool


def explain(answer: Answer) -> str:
    """What an error answer says, with what to do about it."""
    if 300 <= answer.status < 400:
        return f"redirects to {answer.headers.get('Location', 'nowhere')[:200]}; give that address."
    advice = _ADVICE.get(answer.status, "")
    return f"answered {answer.status} {_reason(answer)} {advice}".strip()


def is_lost(answer: Answer) -> bool:
    """Whether the group may be what ended its scorer, so that asking again may end another one."""
    return _error(answer).code == LOST


def is_passing(answer: Answer) -> bool:
    """Whether it may be gone when asked again: a full queue, a restart, or a 500 that is not the reward's
    own, as Serve's proxy answers while a process behind it has died."""
    return answer.status in _PASSING or (answer.status == _FAILED and _error(answer).code == _UNKNOWN)


def retry_after_s(answer: Answer) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or says what is no sensible number."""
    wait = _retry_after(answer)
    return wait if math.isfinite(wait) and 0.0 <= wait <= _LONGEST_WAIT_S else 0.0


def read_description(body: bytes) -> Description:
    """The answer of /v1/describe. Raises RewardError."""
    try:
        read = DescriptionBody.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise RewardError(f"does not describe itself as a reward does: {problem['msg'][:200]}.") from error
    stamp = ScorerStamp(read.stamp.name, read.stamp.version, read.stamp.digest)
    return Description(
        name=read.name,
        stamp=stamp,
        scorer=read.scorer,
        kind=read.kind,
        settings=read.settings,
        refused=read.refused,
        ready=read.ready,
    )


def _error(answer: Answer) -> ErrorDetail:
    try:
        return ErrorBody.model_validate_json(answer.body).error
    except ValidationError:
        text = answer.body[:200].decode("utf-8", "replace")
        return ErrorDetail(code=_UNKNOWN, reason=" ".join(text.split()))


def _reason(answer: Answer) -> str:
    error = _error(answer)
    printable = "".join(letter if letter.isprintable() else " " for letter in error.reason)
    return f"({error.code[:50]}): {printable[:_LONGEST_REASON]}"


def _retry_after(answer: Answer) -> float:
    said = _error(answer).retry_after_s
    header = {name.lower(): value for name, value in answer.headers.items()}.get("retry-after", "")
    if said is not None:
        return said
    return float(header) if header.strip().isdecimal() else 0.0
