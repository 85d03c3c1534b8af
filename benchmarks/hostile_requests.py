"""Requests that no honest client sends, made from a seed: whom they say they are, and what they carry."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.hostile_arrow import MAYBE_STREAMS, NO_STREAMS, good
from benchmarks.hostile_pictures import MAYBE_PICTURES, NO_PICTURES, noise, saved
from benchmarks.hostile_schema import conforming, random_violation

JSON_TYPE = "application/json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
SCORE = "/v1/score"
_PATHS = (SCORE, "/v1/describe", "/v1/ready", "/v1/health", "/openapi.json")
_STRANGE_PATHS = (
    "/",
    "/v2/score",
    "/v1/score/",
    "//v1/score",
    "/v1/%2e%2e/score",
    "/docs",
    "/%00",
    "/v1/score%00",
)
_METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")
_TYPES = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "",
    "application/",
)
_MOST_PICTURES = 8
_TYPES_OF_PICKLES = ("application/octet-stream", "application/x-pickle", "application/python-pickle")


@dataclass(frozen=True)
class Request:
    """One request. headers: as sent, besides Host and Content-Length; maybe with a name twice.

    may_score: it is allowed to be answered with a score, where `authorized`.
    """

    kind: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    may_score: bool
    authorized: bool = True


@dataclass(frozen=True)
class Target:
    """What an attacker knows. token: the true one. schema: the OpenAPI document. body_bytes: its limit."""

    token: str
    schema: Mapping[str, Any]
    body_bytes: int


Maker = Callable[[random.Random, Target], Request]


def make_request(rng: random.Random, target: Target) -> Request:
    """One hostile request; a quarter of them with a wrong token."""
    request = rng.choice(list(MAKERS.values()))(rng, target)
    headers = (*request.headers, ("Authorization", f"Bearer {target.token}"))
    return replace(request, headers=headers)


def without_token(rng: random.Random, target: Target, request: Request) -> Request:
    """The same request with no token or a wrong one."""
    kept = tuple(header for header in request.headers if header[0] != "Authorization")
    wrong = rng.choice(_wrong_tokens(target.token))
    return replace(
        request,
        kind=f"wrong token, {request.kind}",
        headers=(*kept, *wrong),
        may_score=False,
        authorized=False,
    )


def one_request(seed: int, target: Target) -> Request:
    """The hostile request of a seed."""
    rng = random.Random(seed)
    request = make_request(rng, target)
    return without_token(rng, target, request) if rng.random() < 0.25 else request


def sound_request(rng: random.Random) -> Request:
    """A group that is scored where the token is right."""
    image = base64.b64encode(saved(noise(rng), "PNG")).decode()
    group = json.dumps({"prompt": "a", "images": [image]}).encode()
    kind, body = rng.choice([(JSON_TYPE, group), (ARROW_TYPE, good(rng))])
    return Request("sound group", "POST", SCORE, (("Content-Type", kind),), body, may_score=True)


def _wrong_tokens(token: str) -> list[tuple[tuple[str, str], ...]]:
    values = [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {token}",
        token,
        f"Bearer {token[:-1]}",
        f"Bearer {token}a",
        f"Bearer {token.swapcase()}",
        "Bearer null",
        "Bearer ÿþ",
        "Bearer " + "a" * 8000,
        f'Bearer "{token}"',
    ]
    several = (("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {token}"))
    elsewhere = (("X-Authorization", f"Bearer {token}"), ("Cookie", f"token={token}"))
    forwarded = (("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "::1"))
    return [(), several, elsewhere, forwarded, *((("Authorization", value),) for value in values)]


def _score(kind: str, content_type: str, body: bytes, may_score: bool = False) -> Request:
    return Request(kind, "POST", SCORE, (("Content-Type", content_type),), body, may_score)


def _pictures(rng: random.Random, _: Target) -> Request:
    kind, make = rng.choice(list(NO_PICTURES.items()))
    first = [saved(noise(rng), "PNG")] * rng.randint(0, 1)
    return _score(kind, JSON_TYPE, _group([*first, make(rng)]))


def _maybe_pictures(rng: random.Random, _: Target) -> Request:
    kind, make = rng.choice(list(MAYBE_PICTURES.items()))
    files = [make(rng)] * rng.randint(1, _MOST_PICTURES)
    return _score(kind, JSON_TYPE, _group(files), may_score=True)


def _unequal(rng: random.Random, _: Target) -> Request:
    files = [saved(noise(rng, 16, 16), "PNG"), saved(noise(rng, 16, rng.randint(1, 15)), "PNG")]
    return _score("pictures of several sizes", JSON_TYPE, _group(files))


def _arrow(rng: random.Random, _: Target) -> Request:
    kind, make = rng.choice(list(NO_STREAMS.items()))
    return _score(kind, ARROW_TYPE, make(rng))


def _maybe_arrow(rng: random.Random, _: Target) -> Request:
    kind, make = rng.choice(list(MAYBE_STREAMS.items()))
    return _score(kind, ARROW_TYPE, make(rng), may_score=True)


def _by_schema(rng: random.Random, target: Target) -> Request:
    """Breaks one rule of the OpenAPI document's schema of a group."""
    content = target.schema["paths"][SCORE]["post"]["requestBody"]["content"]
    schema = content[JSON_TYPE]["schema"]
    sound = conforming(schema, {"base64": base64.b64encode(saved(noise(rng), "PNG")).decode()})
    done, value = random_violation(rng, schema, sound)
    return _score(f"JSON, {done}", JSON_TYPE, json.dumps(value).encode())


def _text_as_json(rng: random.Random, _: Target) -> Request:
    image = base64.b64encode(saved(noise(rng), "PNG")).decode()
    sound = json.dumps({"prompt": "a", "images": [image]})
    broken = {
        "cut JSON": sound[: rng.randrange(len(sound))],
        "JSON with NaN": sound.replace('"a"', rng.choice(["NaN", "Infinity", "-Infinity"])),
        "JSON nested deeply": rng.choice(["[", '{"a":', '{"images":[']) * rng.choice([100, 100_000]),
        "wide JSON": "[" + rng.choice(["[],", "{},", "0,", '"",']) * 200_000 + "0]",
        "JSON of a long number": sound.replace('"a"', "9" * 100_000),
        "JSON with half a character": sound.replace('"a"', r'"\ud800"'),
        "JSON with a comment": sound + "// end",
        "two JSON texts": sound + sound,
        "JSON of text": json.dumps(sound),
        "no text": rng.choice(["", " ", "\x00", "null", "0", "﻿" + sound]),
        "YAML": "prompt: a\nimages: []",
        "pickle": "cos\nsystem\n(S'touch /tmp/hostile_pickle_ran'\ntR.",
    }
    kind = rng.choice(sorted(broken))
    return _score(kind, JSON_TYPE, broken[kind].encode())


def _bytes_as_json(rng: random.Random, _: Target) -> Request:
    encoded = json.dumps({"prompt": "a", "images": []}).encode(rng.choice(["utf-16", "utf-32", "utf-7"]))
    body = rng.choice([rng.randbytes(300), b"\xed\xa0\x80", encoded, b'{"prompt": "\xff"}', bytes(5000)])
    return _score("bytes as JSON", JSON_TYPE, body)


def _content_type(rng: random.Random, _: Target) -> Request:
    kind = rng.choice(_TYPES + _TYPES_OF_PICKLES)
    body = rng.choice([b"cos\nsystem\n(S'touch /tmp/hostile_pickle_ran'\ntR.", good(rng), b"a=b"])
    headers = (("Content-Type", kind),) if kind else ()
    return Request("another content type", "POST", SCORE, headers, body, may_score=False)


def _crossed(rng: random.Random, _: Target) -> Request:
    bodies = {JSON_TYPE: good(rng), ARROW_TYPE: _group([saved(noise(rng), "PNG")])}
    kind = rng.choice(sorted(bodies))
    return _score("the other content type's body", kind, bodies[kind])


def _encoded(rng: random.Random, _: Target) -> Request:
    headers = (("Content-Type", JSON_TYPE), ("Content-Encoding", rng.choice(["gzip", "br", "deflate", "x"])))
    return Request("content encoding", "POST", SCORE, headers, bytes(1000), may_score=False)


def _method(rng: random.Random, _: Target) -> Request:
    method = rng.choice(_METHODS)
    return Request(f"{method} a path", method, rng.choice(_PATHS), (), b"", may_score=False)


def _path(rng: random.Random, _: Target) -> Request:
    path = rng.choice(_STRANGE_PATHS) + rng.choice(["", "?token=x", "?" + "a" * 3000])
    return Request("another path", rng.choice(["GET", "POST"]), path, (), b"", may_score=False)


def _large(rng: random.Random, target: Target) -> Request:
    return _score("body too large", rng.choice([JSON_TYPE, ARROW_TYPE]), bytes(target.body_bytes + 1))


def _group(files: list[bytes]) -> bytes:
    return json.dumps({"prompt": "a", "images": [base64.b64encode(file).decode() for file in files]}).encode()


MAKERS: dict[str, Maker] = {
    "pictures": _pictures,
    "maybe pictures": _maybe_pictures,
    "unequal": _unequal,
    "arrow": _arrow,
    "maybe arrow": _maybe_arrow,
    "schema": _by_schema,
    "schema again": _by_schema,
    "text": _text_as_json,
    "bytes": _bytes_as_json,
    "content type": _content_type,
    "crossed": _crossed,
    "encoded": _encoded,
    "method": _method,
    "path": _path,
    "large": _large,
    "sound": lambda rng, _: sound_request(rng),
}
"""Kinds of hostile requests; a sound one among them, for wrong tokens."""
