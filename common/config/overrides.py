"""Dotted overrides of the command line, `key.sub=value`, applied to the mapping read from the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.config.problems import show, unknown_key
from common.config.tree import Group, Leaf, Node, Table, child
from common.config.yaml_text import read_yaml
from common.errors import ConfigError

_FORM = "write key.sub=value, for example sampling.steps=20"


@dataclass(frozen=True)
class Overridden:
    """keys: dotted keys that were applied. problems: a line for each override that could not be."""

    keys: frozenset[str]
    problems: tuple[str, ...]


def plain_copy(node: Node, value: Any) -> Any:
    """A copy along the schema, so that no two keys share a mapping.

    An empty section (null) becomes a mapping without keys, a section's shorthand the mapping it stands for.
    """
    if isinstance(node, Leaf):
        return value
    if isinstance(node, Table):
        if not isinstance(value, dict):
            return value
        return {name: plain_copy(node.value, item) for name, item in value.items()}
    shorthand = _shorthand(node)
    if isinstance(value, str) and shorthand:
        return {shorthand: value}
    if not isinstance(value, dict):
        return {} if value is None else value
    return {name: plain_copy(child(node, name) or Leaf(Any, ()), item) for name, item in value.items()}


def apply_overrides(root: Group, given: dict[str, Any], overrides: Sequence[str]) -> Overridden:
    """Set each override in `given`, in order, and complete the kinds of sections that are a choice.

    A kind chosen on the command line drops the file's keys that only other kinds have, in the section and in
    each entry of a table; such a key given on the command line itself stays, and is refused by validation.
    """
    keys: list[str] = []
    problems: list[str] = []
    for text in overrides:
        try:
            keys.append(_apply(root, given, text))
        except ConfigError as error:
            problems.append(str(error))
    for name in root.fields():
        node = child(root, name)
        section = given.get(name, {})
        if isinstance(node, Group) and node.discriminator and isinstance(section, dict):
            _settle_kind(node, name, given, frozenset(keys))
        elif isinstance(node, Table) and isinstance(node.value, Group) and isinstance(section, dict):
            for entry in section:
                _settle_key(node.value, f"{name}.{entry}", section[entry], frozenset(keys))
    return Overridden(frozenset(keys), tuple(problems))


def _shorthand(group: Group) -> str:
    return next((model.shorthand for model in group.variants.values()), "")


def _settle_kind(group: Group, name: str, given: dict[str, Any], keys: frozenset[str]) -> None:
    section = given.setdefault(name, {})
    tag = section.setdefault(group.discriminator, group.default_tag)
    if f"{name}.{group.discriminator}" not in keys or tag not in group.variants:
        return
    _drop_foreign(group, tag, name, section, keys)


def _settle_key(group: Group, name: str, section: Any, keys: frozenset[str]) -> None:
    chosen = [tag for tag in group.variants if f"{name}.{tag}" in keys]
    if group.by_key and len(chosen) == 1 and isinstance(section, dict):
        _drop_foreign(group, chosen[0], name, section, keys)


def _drop_foreign(group: Group, tag: str, name: str, section: dict[str, Any], keys: frozenset[str]) -> None:
    """Remove the keys that only other kinds have, but for those given on the command line or below it."""
    foreign = group.fields().keys() - group.fields(tag).keys()
    for key in foreign & section.keys():
        if not any(given == f"{name}.{key}" or given.startswith(f"{name}.{key}.") for given in keys):
            del section[key]


def _apply(root: Group, given: dict[str, Any], text: str) -> str:
    """Set one override; returns its dotted key."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if text.startswith("-"):
        raise ConfigError(f"{show(text)}: overrides take no dashes; {_FORM}")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError(f"{show(text)}: not an override; {_FORM}")
    parts, node = _resolve(root, tuple(key.split(".")))
    value = plain_copy(node, _parse(node, raw.strip(), key))
    mapping = given
    at: Node = root
    for part in parts[:-1]:
        at = _below(at, part)
        inner = plain_copy(at, mapping.get(part))
        mapping[part] = inner if isinstance(inner, dict) else {}
        mapping = mapping[part]
    mapping[parts[-1]] = value
    return ".".join(parts)


def _below(node: Node, part: str) -> Node:
    if isinstance(node, Table):
        return node.value
    following = child(node, part) if isinstance(node, Group) else None
    if following is None:
        raise ConfigError(f"{part}: unknown key")
    return following


def _resolve(root: Group, parts: tuple[str, ...]) -> tuple[tuple[str, ...], Node]:
    """The parts as keys of nested mappings, and the node they lead to.

    In a table of single settings the rest is one name, because names such as ray.io/zone hold dots.
    """
    node: Node = root
    for position, part in enumerate(parts):
        if isinstance(node, Table) and isinstance(node.value, Leaf):
            return (*parts[:position], ".".join(parts[position:])), node.value
        if isinstance(node, Leaf):
            above = ".".join(parts[:position])
            key = ".".join(parts)
            raise ConfigError(f"{key}: {above} is a single setting ({node.allowed}) and holds no keys")
        if isinstance(node, Group) and child(node, part) is None:
            raise ConfigError(unknown_key(root, parts[: position + 1], parts[position + 1 :], node.fields()))
        node = _below(node, part)
    return parts, node


def _parse(node: Node, raw: str, key: str) -> Any:
    """A text setting takes the characters as they are, unless quoted; everything else is YAML."""
    if isinstance(node, Leaf) and node.annotation is str and raw[:1] not in ("'", '"'):
        return raw
    return read_yaml(raw, f"{key}={raw}")
