"""From plain values to a validated section, or to a line for each thing that is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from common.config.tree import (
    Node,
    about,
    allowed,
    choices,
    fields,
    kind_key,
    nearest,
    show,
    tree_of,
    unknown_key,
    variants,
)
from common.errors import ConfigError
from common.hidden import HIDDEN, names_secret

M = TypeVar("M", bound=BaseModel)


def validate(
    model: type[M],
    values: Mapping[str, Any],
    origin: str,
    shown: Mapping[str, Any] | None = None,
    marked: Collection[str] = (),
    problems: Sequence[str] = (),
) -> M:
    """The validated section. origin names the values in errors.

    shown: what errors show of the values, where they hold secrets. marked: dotted keys of the command line.
    problems: lines found before. Raises ConfigError with all problems, one a line: the key, what was given,
    what is allowed.
    """
    try:
        section = model.model_validate(values)
    except ValidationError as error:
        problems = [*problems, *_lines(error, tree_of(model), values if shown is None else shown, marked)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n  ".join([f"{origin}: {count}", *problems]))
    return section


def _lines(error: ValidationError, root: Node, shown: Any, marked: Collection[str]) -> list[str]:
    """In the order of the schema; several complaints about one key are one line."""
    lines: dict[tuple[str, ...], str] = {}
    for problem in error.errors(include_url=False):
        place = _follow(root, problem["loc"], shown)
        if problem["type"] == "value_error":
            line = f"{place.key or 'whole configuration'}: {problem['ctx']['error']}"
        else:
            line = _LINES.get(problem["type"], _not_allowed)(place)
        key, colon, rest = line.partition(": ")
        mark = " (command line)" if key in marked else ""
        lines.setdefault(place.parts, key + mark + colon + rest)
    return list(lines.values())


@dataclass(frozen=True)
class _Place:
    """Where a problem is.

    value: what was given there. node: what belongs there, empty where nothing does. above: the section that
    it stands in. tag: what was chosen where that is a choice between sections.
    """

    root: Node
    parts: tuple[str, ...]
    value: Any
    node: Node
    above: Node
    tag: str

    @property
    def key(self) -> str:
        return ".".join(self.parts)


def _follow(root: Node, location: tuple[int | str, ...], shown: Any) -> _Place:
    node = above = root
    tag = ""
    parts: tuple[str, ...] = ()
    for item in map(str, location):
        if "oneOf" in node:
            tag, node = item, variants(node)[item]
        elif below := fields(node, item):
            above, node, parts = node, below.get(item, {}), (*parts, item)
            shown = shown.get(item) if isinstance(shown, Mapping) else shown
    return _Place(root, parts, HIDDEN if parts and names_secret(parts[-1]) else shown, node, above, tag)


def _not_allowed(place: _Place) -> str:
    hint = _did_you_mean(place.value, choices(place.node))
    if place.node.get("type") == "string" and isinstance(place.value, int | float):
        hint = f'; write it as "{show(place.value)}", in quotes, if it is meant as text'
    return f"{place.key}: got {show(place.value)}; allowed: {allowed(place.node)}{hint}"


def _missing(place: _Place) -> str:
    what = about(place.node).rstrip(".")
    return f"{place.key}: missing; give {allowed(place.node)}" + (f" ({what})" if what else "")


def _unknown(place: _Place) -> str:
    return unknown_key(place.root, place.parts, place.above, place.tag)


def _bad_kind(place: _Place) -> str:
    key, tags = kind_key(place.node), list(variants(place.node))
    if key and isinstance(place.value, Mapping):
        value = place.value.get(key)
        hint = _did_you_mean(value, tags)
        return f"{place.key}.{key}: got {show(value)}; allowed: {' or '.join(tags)}{hint}"
    keys = list(place.value) if isinstance(place.value, Mapping) else []
    hint = _did_you_mean(keys[0] if keys else None, tags)
    return f"{place.key}: got {show(keys or place.value)}; allowed: {allowed(place.node)}{hint}"


def _did_you_mean(value: Any, names: Sequence[str]) -> str:
    near = nearest(value, names) if isinstance(value, str) else None
    return f"; did you mean {near}?" if near and near != value else ""


def _no_text(place: _Place) -> str:
    return (
        f"{place.key}: got {show(place.value)}, whose letters this locale does not know; set PYTHONUTF8=1 or "
        "LC_ALL=C.UTF-8"
    )


_LINES = {
    "string_unicode": _no_text,
    "missing": _missing,
    "extra_forbidden": _unknown,
    "union_tag_invalid": _bad_kind,
    "union_tag_not_found": _bad_kind,
}
