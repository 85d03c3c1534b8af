"""The attack itself: its rules notice what they must, and a short one passes against a real process."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.hostile import attack
from benchmarks.hostile_requests import SCORE, Request, Target, one_request
from benchmarks.hostile_rules import broken_rules
from benchmarks.hostile_schema import conforming, violations

TOKEN = "a-token-of-the-tests-0123456789"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["prompt", "images"],
    "additionalProperties": False,
    "properties": {
        "prompt": {"type": "string", "maxLength": 5},
        "images": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}, "minItems": 1},
    },
}
BODY = {"application/json": {"schema": SCHEMA}}
POST = {
    "requestBody": {"content": BODY},
    "responses": {"200": {}, "401": {}, "422": {}, "429": {}, "503": {}},
}
TARGET = Target(TOKEN, {"paths": {SCORE: {"post": POST}}}, 1000)


@dataclass(frozen=True)
class Said:
    """An answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def error(status: int, wait: float | None = None, reason: str = "because") -> Said:
    """An error in the documented form."""
    body = json.dumps({"error": {"code": "c", "reason": reason, "retry_after_s": wait}}).encode()
    return Said(status, body, {} if wait is None else {"retry-after": "1"})


def _request(may_score: bool = False, authorized: bool = True) -> Request:
    return Request("kind", "POST", SCORE, (), b"", may_score, authorized)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (_request(), error(422)),
        (_request(), error(429, 0.5)),
        (_request(), error(503, 1.0)),
        (_request(may_score=True), Said(200, b"{}")),
        (_request(authorized=False), error(401)),
    ],
)
def test_what_is_right_breaks_no_rule(request_: Request, said: Said) -> None:
    assert broken_rules(request_, said, TARGET) == []


@pytest.mark.parametrize(
    ("request_", "said", "rule"),
    [
        (_request(), error(500), "no back-pressure"),
        (_request(), Said(200, b"{}"), "scored"),
        (_request(authorized=False), error(422), "not refused"),
        (_request(may_score=True, authorized=False), Said(200, b"{}"), "not refused"),
        (_request(), Said(422, b"oops"), "documented form"),
        (_request(), Said(422, b'{"error": {"code": "c"}}'), "with the keys"),
        (_request(), error(422, reason="Traceback (most recent call last)"), "traceback"),
        (_request(), error(422, reason=TOKEN), "the token"),
        (_request(), error(418), "does not name"),
        (_request(), error(503), "wait"),
        (_request(), error(422, 3.0), "wait"),
    ],
)
def test_what_is_wrong_breaks_a_rule(request_: Request, said: Said, rule: str) -> None:
    assert any(rule in found for found in broken_rules(request_, said, TARGET))


def test_violations_cover_every_rule_of_a_schema() -> None:
    good = conforming(SCHEMA, {"base64": "QUJD"})
    assert good == {"prompt": "text", "images": ["QUJD"]}
    done = {what for what, value in violations(SCHEMA, good) if value != good}
    assert {
        "without prompt",
        "without images",
        "unknown key",
        "prompt: too long",
        "images: too few items",
    } <= done
    assert {f"images: item: {kind} for string" for kind in ("null", "number", "object", "array")} <= done


def test_requests_depend_on_the_seed_only() -> None:
    for seed in range(60):
        assert one_request(seed, TARGET).body == one_request(seed, TARGET).body
    kinds = {one_request(seed, TARGET).kind for seed in range(60)}
    assert len(kinds) > 30
    assert any(not one_request(seed, TARGET).authorized for seed in range(60))


def test_a_short_attack_on_a_real_process_breaks_no_rule() -> None:
    result = attack(count=60, seed=random.Random(3).randrange(100), command="test")
    assert [verdict.detail for verdict in result.verdicts if not verdict.met] == []
    answered = result.raw["answers by kind"]
    assert isinstance(answered, dict)
    assert sum(sum(counts.values()) for counts in answered.values()) == 60
