"""The tree of settings as JSON Schema, which pydantic makes of the models: what a key may hold, in words.

Overrides, errors and --help walk it, so none of them repeats the models. A node is one of four things: a
section (it has `properties`), a choice between sections (`oneOf`), a table of names that the user chooses
(`additionalProperties`), or a single setting. The first three may have `anyOf` too, where they may be left
out (null). A choice is made by the value of one field (its `discriminator`, such as kind), or by which of its
sections' first required keys is there (rewards: scorer, app or url).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from itertools import islice
from typing import Any

from pydantic import BaseModel

Node = dict[str, Any]

_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
_LOWER = {"minimum": "at least", "exclusiveMinimum": "above"}
_UPPER = {"maximum": "at most", "exclusiveMaximum": "below"}


@cache
def tree_of(model: type[BaseModel]) -> Node:
    """The root node of a model, every reference resolved."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, list):
            return [resolved(item) for item in node]
        if not isinstance(node, dict):
            return node
        whole = {**definitions.get(node.get("$ref", "").removeprefix("#/$defs/"), {}), **node}
        found = {key: value if key == "default" else resolved(value) for key, value in whole.items()}
        below = [part for part in found.get("anyOf", ()) if not is_setting(part)]
        return {**below[0], **found} if len(below) == 1 else found

    root: Node = resolved(schema)
    return root


def kind_key(choice: Node) -> str | None:
    """The field whose value chooses; None where the choice is made by which key is there."""
    return choice["discriminator"]["propertyName"] if "discriminator" in choice else None


def variants(choice: Node) -> dict[str, Node]:
    """Sections of a choice by the value, or the key, that chooses them."""
    key = kind_key(choice)
    return {
        section["properties"][key]["const"] if key else section["required"][0]: section
        for section in choice.get("oneOf", ())
    }


def fields(node: Node, name: str = "NAME") -> dict[str, Node]:
    """The nodes below a node; of a choice those of all its sections. name: an entry of a table."""
    if "oneOf" in node:
        return {key: below for section in node["oneOf"] for key, below in section["properties"].items()}
    if is_table(node):
        return {name: node["additionalProperties"]}
    return node.get("properties", {})


def about(node: Node) -> str:
    """What a section, a choice or a setting is, in a line. Never a docstring: python -OO leaves those out."""
    return str(node["title"] if "properties" in node else node.get("description", ""))


def is_table(node: Node) -> bool:
    """Whether the user chooses the names below the node."""
    return isinstance(node.get("additionalProperties"), dict)


def is_setting(node: Node) -> bool:
    """Whether nothing is below the node."""
    return not fields(node)


def may_be_null(node: Node) -> bool:
    """Whether the node may be left out by null, as a section of type `X | None`."""
    return {"type": "null"} in node.get("anyOf", ())


def allowed(node: Node) -> str:
    """For example "whole number, at least 1, at most 1000"."""
    if "anyOf" in node:
        return " or ".join(allowed(part) for part in node["anyOf"])
    if tags := variants(node):
        return f"settings {'of kind' if kind_key(node) else 'with exactly one of'} {', '.join(tags)}"
    if is_table(node):
        return f"mapping of names to {allowed(node['additionalProperties'])}"
    if "properties" in node:
        required = f" (at least {', '.join(node['required'])})" if "required" in node else ""
        alone = f", or the {node['shorthand']} alone" if node.get("shorthand") else ""
        return f"settings{required}{alone}"
    if "enum" in node or "const" in node:
        return " or ".join(map(str, node.get("enum", [node.get("const")])))
    words = _WORDS.get(node["type"]) or str(node["type"])
    if "items" in node:
        words = f"list of {allowed(node['items'])}s"
    limits = [f"{limit} {node[key]}" for key, limit in (_LOWER | _UPPER).items() if key in node]
    return ", ".join([words, *limits, *(["not empty"] if {"minLength", "minItems"} & node.keys() else [])])


def choices(node: Node) -> list[str]:
    """The texts that a single setting allows; empty where it allows others."""
    return [str(value) for part in (node, *node.get("anyOf", ())) for value in part.get("enum", ())]


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The one most like a mistyped name, None where none is near."""
    return next(iter(get_close_matches(name, names, n=1)), None)


def nearest_key(node: Node, parts: Sequence[str]) -> str | None:
    """The dotted key most like a mistyped one, corrected part by part; None where a part has no near name."""
    below = fields(node, parts[0])
    name = nearest(parts[0], list(below))
    if name is None or len(parts) == 1:
        return name
    rest = nearest_key(below[name], parts[1:])
    return rest and f"{name}.{rest}"


def near_keys(root: Node, parts: Sequence[str]) -> str | None:
    """The keys that an unknown one was probably meant for, joined by "or"; None where none is near."""
    key = ".".join(parts)
    sections = [name for name, node in fields(root).items() if key in node.get("properties", ())]
    return " or ".join(f"{name}.{key}" for name in sections) or nearest_key(root, parts)


def unknown_key(root: Node, parts: Sequence[str], section: Node, tag: str = "") -> str:
    """The line of a key that a section (of kind `tag`) does not have, with the nearest key that exists."""
    key = ".".join(parts)
    near = near_keys(root, parts)
    # A key of another kind is nearest to itself.
    hint = f"did you mean {near}?" if near and near != key else f"allowed there: {', '.join(fields(section))}"
    return f"{key}: unknown key{f' for {tag}' if tag else ''}; {hint}"


def show(value: Any, longest: int = 60) -> str:
    """A value as JSON, in at most so many characters and about as much work."""
    pieces = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=str).iterencode(value)
    text = "".join(islice(pieces, longest + 1))
    return text if len(text) <= longest else text[: longest - 1] + "…"
