"""Values that break a JSON schema, one rule at a time, made from the schema itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_OF_EACH_TYPE: dict[str, list[Any]] = {
    "null": [None],
    "boolean": [True, False],
    "number": [0, -1, 1.5, 1e308, 10**30],
    "string": ["", "a", "../../etc/passwd", "\x00", "💥" * 50, "{}"],
    "array": [[], [None], [[[]]], [1, "a", {}]],
    "object": [{}, {"a": None}, {"__proto__": {}}, {"images": []}],
}


def conforming(schema: Schema, samples: Mapping[str, Any]) -> Any:
    """A value that keeps the schema. samples: values by contentEncoding, for texts with a meaning."""
    if schema["type"] == "object":
        return {name: conforming(schema["properties"][name], samples) for name in schema["required"]}
    if schema["type"] == "array":
        return [conforming(schema["items"], samples) for _ in range(max(1, schema.get("minItems", 0)))]
    return samples.get(schema.get("contentEncoding", ""), "text")


def violations(schema: Schema, good: Any) -> Iterator[tuple[str, Any]]:
    """Every way to break one rule of the schema in an otherwise good value: what was done, and the value."""
    kind = schema["type"]
    for other, values in _OF_EACH_TYPE.items():
        if other != kind:
            yield from ((f"{other} for {kind}", value) for value in values)
    yield from _BREAKERS[kind](schema, good)


def random_violation(rng: random.Random, schema: Schema, good: Any) -> tuple[str, Any]:
    """One of them."""
    return rng.choice(list(violations(schema, good)))


def _break_object(schema: Schema, good: Any) -> Iterator[tuple[str, Any]]:
    for name in schema["required"]:
        yield f"without {name}", {key: value for key, value in good.items() if key != name}
    if schema.get("additionalProperties") is False:
        yield "unknown key", {**good, "reward": 1.0}
        yield "unknown key of a class", {**good, "__class__": "os.system"}
    for name, inner in schema["properties"].items():
        for done, value in violations(inner, good[name]):
            yield f"{name}: {done}", {**good, name: value}


def _break_array(schema: Schema, good: Any) -> Iterator[tuple[str, Any]]:
    if schema.get("minItems", 0) > 0:
        yield "too few items", []
    if "maxItems" in schema:
        yield "too many items", good[:1] * (schema["maxItems"] + 1)
    for done, value in violations(schema["items"], good[0]):
        yield f"item: {done}", [*good, value]
        yield f"first item: {done}", [value, *good]


def _break_string(schema: Schema, good: Any) -> Iterator[tuple[str, Any]]:
    if "maxLength" in schema:
        yield "too long", "a" * (schema["maxLength"] + 1)
    if schema.get("contentEncoding") == "base64":
        for text in (
            "",
            "*",
            "a",
            good[:-3],
            good + "=",
            " " + good,
            "data:image/png;base64," + good,
            "ü" * 8,
        ):
            yield "no base64 of a picture", text


_BREAKERS = {"object": _break_object, "array": _break_array, "string": _break_string}
