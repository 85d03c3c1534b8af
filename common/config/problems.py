"""What is wrong with a configuration, one line a problem: dotted key, what was given, what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from common.config.fields import Section
from common.config.tree import Group, Leaf, Node, Table, child, correct, keys_named, nearest

_LONGEST_VALUE = 60


@dataclass(frozen=True)
class Place:
    """Where a problem is.

    node: what belongs there, None where nothing does. parent: the node above. tag: the variant of parent.
    """

    parts: tuple[str, ...]
    node: Node | None
    parent: Node
    tag: str | None

    @property
    def key(self) -> str:
        """Dotted."""
        return ".".join(self.parts)


@dataclass(frozen=True)
class Sources:
    """The mapping that was validated, and the dotted keys of it that came from the command line."""

    root: Group
    given: Mapping[str, Any]
    from_command_line: Collection[str]

    def value(self, parts: tuple[str, ...]) -> Any:
        """What was given there."""
        value: Any = self.given
        for part in parts:
            if not isinstance(value, Mapping) or part not in value:
                return value
            value = value[part]
        return value

    def label(self, key: str) -> str:
        """The key, marked where it was given on the command line."""
        return f"{key} (command line)" if key in self.from_command_line else key


def show(value: Any, longest: int = _LONGEST_VALUE) -> str:
    """A value as one would write it in YAML, in at most so many characters and about as much work."""
    if isinstance(value, dict):
        text = _show_items("{", ((f"{name}: ", item) for name, item in value.items()), longest) + "}"
    elif isinstance(value, list | tuple):
        text = _show_items("[", (("", item) for item in value), longest) + "]"
    else:
        start = value[: longest + 1] if isinstance(value, str) else value
        text = json.dumps(start, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[: max(longest - 1, 0)] + "…"


def _show_items(text: str, items: Iterable[tuple[str, Any]], longest: int) -> str:
    for position, (name, item) in enumerate(items):
        if len(text) > longest:
            break
        text += (", " if position else "") + name
        text += show(item, max(longest - len(text), 0))
    return text


def unknown_key(root: Group, parts: tuple[str, ...], rest: tuple[str, ...], siblings: Collection[str]) -> str:
    """The line of a key that does not exist, with the nearest that does. rest: the keys given below it."""
    whole = (*parts, *rest)
    elsewhere = " or ".join(keys_named(root, whole[-1])) if len(whole) == 1 else ""
    near = elsewhere or correct(root, whole) or correct(root, parts)
    hint = f"did you mean {near}?" if near else f"allowed there: {', '.join(sorted(siblings))}"
    return f"{'.'.join(whole)}: unknown key; {hint}"


def problem_lines(error: ValidationError, sources: Sources) -> list[str]:
    """One line a problem, in the order of the schema; several complaints about one key are one line."""
    lines: dict[str, str] = {}
    for found in error.errors(include_url=False):
        place = _follow(sources.root, found["loc"])
        text = _TEXTS.get(found["type"], _not_allowed)(place, dict(found), sources)
        lines.setdefault(place.key, text)
    return list(lines.values())


def _follow(root: Group, location: tuple[int | str, ...]) -> Place:
    node: Node | None = root
    parent: Node = root
    tag: str | None = None
    parts: list[str] = []
    for item in location:
        name = str(item)
        if isinstance(node, Leaf) or node is None:
            break
        if isinstance(node, Group) and node.is_choice and tag is None and name in node.variants:
            tag = name
            continue
        parent, parts = node, [*parts, name]
        if isinstance(node, Table):
            node, tag = node.value, None
        else:
            following = child(node, name, tag if node.is_choice else None)
            node, tag = following, tag if following is None else None
    return Place(tuple(parts), node, parent, tag)


def _not_allowed(place: Place, _: dict[str, Any], sources: Sources) -> str:
    value = sources.value(place.parts)
    allowed = "nothing" if place.node is None else place.node.allowed
    hint = _value_hint(place.node, value) if isinstance(place.node, Leaf) else ""
    return f"{sources.label(place.key)}: got {show(value)}; allowed: {allowed}{hint}"


def _value_hint(leaf: Leaf, value: Any) -> str:
    if leaf.annotation is str and isinstance(value, int | float):
        return f'; write it as "{show(value)}", in quotes, if it is meant as text'
    near = nearest(value, leaf.choices) if isinstance(value, str) else ""
    return f"; did you mean {near}?" if near else ""


def _missing(place: Place, _: dict[str, Any], sources: Sources) -> str:
    allowed = "" if place.node is None else place.node.allowed
    parent = place.parent
    info = parent.fields(place.tag)[place.parts[-1]] if isinstance(parent, Group) else None
    about = f" ({info.description.rstrip('.')})" if info is not None and info.description else ""
    return f"{place.key}: missing; give {allowed}{about}"


def _unknown(place: Place, _: dict[str, Any], sources: Sources) -> str:
    parent = place.parent
    siblings = parent.fields(place.tag) if isinstance(parent, Group) else {}
    name = place.parts[-1]
    if isinstance(parent, Group) and parent.is_choice:
        owners = " or ".join(tag for tag in parent.variants if name in parent.fields(tag))
        if owners:
            given = f"{sources.label(place.key)}: got {show(sources.value(place.parts))}"
            return f"{given}; {_whose(parent, owners, place)}"
    return unknown_key(sources.root, place.parts, (), siblings)


def _whose(parent: Group, owners: str, place: Place) -> str:
    section = ".".join(place.parts[:-1])
    if parent.by_key:
        return f"it belongs to {owners}, and {section} has {place.tag}"
    kind = f"{section}.{parent.discriminator}"
    return f"it belongs to {kind} {owners}, and {kind} is {place.tag}"


def _bad_tag(place: Place, _: dict[str, Any], sources: Sources) -> str:
    group = place.node
    if not isinstance(group, Group):
        raise TypeError(f"{place.key} is no choice between kinds")
    if group.by_key:
        return _not_one_key(place, group, sources)
    key = f"{place.key}.{group.discriminator}"
    value = sources.value((*place.parts, group.discriminator))
    near = nearest(str(value), group.variants)
    hint = f"; did you mean {near}?" if near else ""
    return f"{sources.label(key)}: got {show(value)}; allowed: {' or '.join(group.variants)}{hint}"


def _not_one_key(place: Place, group: Group, sources: Sources) -> str:
    """None of the keys that choose, or several of them."""
    value = sources.value(place.parts)
    label = sources.label(place.key)
    if not isinstance(value, Mapping):
        return f"{label}: got {show(value)}; allowed: {group.allowed}"
    several = [tag for tag in group.variants if tag in value]
    wrong = [name for name in value if name not in group.fields()]
    near = [nearest(name, group.variants) for name in wrong]
    hint = "".join(f"; did you mean {name}?" for name in near[:1] if name and not several)
    got = " and ".join(several) or ", ".join(map(str, value)) or "nothing"
    forms = " or ".join(f"{tag} ({_about(model, tag)})" for tag, model in group.variants.items())
    return f"{label}: got {got}; give exactly one of {forms}{hint}"


def _about(model: type[Section], field: str) -> str:
    return (model.model_fields[field].description or "").rstrip(".")


def _own_words(place: Place, found: dict[str, Any], sources: Sources) -> str:
    key = sources.label(place.key) if place.parts else "whole configuration"
    return f"{key}: {found['ctx']['error']}"


_TEXTS: dict[str, Callable[[Place, dict[str, Any], Sources], str]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "union_tag_invalid": _bad_tag,
    "union_tag_not_found": _bad_tag,
    "value_error": _own_words,
}
