"""The shape of the configuration tree, read from the pydantic models: what a key may hold, in words.

Loading, overrides, error texts and `--help` all walk this description, so none of them repeats the schema.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import Discriminator, Tag
from pydantic.fields import FieldInfo

from common.config.fields import Section

_WORDS: dict[object, str] = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_PLURALS: dict[object, str] = {int: "whole numbers", float: "numbers", str: "texts"}
_LIMIT_WORDS: dict[type, Callable[[Any], str]] = {
    annotated_types.Ge: lambda limit: f"at least {limit.ge}",
    annotated_types.Gt: lambda limit: f"above {limit.gt}",
    annotated_types.Le: lambda limit: f"at most {limit.le}",
    annotated_types.Lt: lambda limit: f"below {limit.lt}",
    annotated_types.MinLen: lambda limit: "not empty",
}


@dataclass(frozen=True)
class Leaf:
    """A single setting: a number, a text, a choice or a list of them."""

    annotation: Any
    limits: tuple[str, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts a choice allows; empty where the setting is no choice."""
        parts = get_args(self.annotation) if _is_union(self.annotation) else (self.annotation,)
        return tuple(str(value) for part in parts if get_origin(part) is Literal for value in get_args(part))

    @property
    def allowed(self) -> str:
        """For example "whole number, at least 1, at most 1000"."""
        return ", ".join((_words(self.annotation), *self.limits))


@dataclass(frozen=True)
class Table:
    """A mapping from names the user chooses to nodes of one kind."""

    value: Node

    @property
    def allowed(self) -> str:
        """What to write there."""
        return f"mapping of names to {self.value.allowed}"


@dataclass(frozen=True)
class Group:
    """A section. variants: its models by tag; one model under "" where there is no choice between kinds.

    A kind is chosen either by the value of the field `discriminator`, or, where `by_key`, by which one of the
    tags is there as a key.
    """

    variants: Mapping[str, type[Section]]
    discriminator: str = ""
    default_tag: str = ""
    by_key: bool = False

    @property
    def is_choice(self) -> bool:
        """Whether there are kinds to choose from."""
        return len(self.variants) > 1

    @property
    def allowed(self) -> str:
        """What to write there."""
        if self.by_key:
            return f"settings with exactly one of {', '.join(self.variants)}"
        shorthands = {model.shorthand for model in self.variants.values() if model.shorthand}
        required = [name for model in self.variants.values() for name in _required(model)]
        keys = f" (at least {', '.join(required)})" if required else ""
        return "settings" + keys + "".join(f", or the {name} alone" for name in sorted(shorthands))

    def fields(self, tag: str | None = None) -> dict[str, FieldInfo]:
        """Fields by name, of one variant or (tag None) of all of them."""
        chosen = self.variants.values() if tag is None else (self.variants[tag],)
        return {name: info for model in chosen for name, info in model.model_fields.items()}


Node = Leaf | Table | Group


def _required(model: type[Section]) -> list[str]:
    return [name for name, info in model.model_fields.items() if info.is_required()]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _words(annotation: Any) -> str:
    if annotation in _WORDS:
        return _WORDS[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return _either([str(value) for value in arguments])
    if _is_union(annotation):
        parts = [get_args(part) if get_origin(part) is Literal else (_words(part),) for part in arguments]
        return _either([str(word) for part in parts for word in part])
    return f"list of {_PLURALS[arguments[0]]}"


def _limits(info: FieldInfo) -> tuple[str, ...]:
    return tuple(_LIMIT_WORDS[type(limit)](limit) for limit in info.metadata if type(limit) in _LIMIT_WORDS)


def _group(models: Iterable[type[Section]], info: FieldInfo) -> Group:
    discriminator = str(info.discriminator)
    variants = {get_args(model.model_fields[discriminator].annotation)[0]: model for model in models}
    default_tag = info.default.model_dump()[discriminator] if isinstance(info.default, Section) else ""
    return Group(variants, discriminator, default_tag)


def _keyed_group(annotation: Any) -> Group:
    """The kinds of a union whose members carry a Tag, the key that chooses them."""
    variants = {}
    for member in get_args(get_args(annotation)[0]):
        model, *marks = get_args(member)
        (tag,) = (mark.tag for mark in marks if isinstance(mark, Tag))
        variants[tag] = model
    return Group(variants, by_key=True)


def _node(annotation: Any, info: FieldInfo) -> Node:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return Group({"": annotation})
    if get_origin(annotation) is Annotated and isinstance(get_args(annotation)[1], Discriminator):
        return _keyed_group(annotation)
    if info.discriminator is not None:
        return _group(get_args(annotation), info)
    if get_origin(annotation) is dict:
        return Table(_node(get_args(annotation)[1], info))
    return Leaf(annotation, _limits(info))


@cache
def children(model: type[Section]) -> dict[str, Node]:
    """The nodes of a section's fields, by name, in order."""
    return {name: _node(info.annotation, info) for name, info in model.model_fields.items()}


def child(group: Group, name: str, tag: str | None = None) -> Node | None:
    """The node of a field, or None where no variant (or not the tagged one) has it."""
    models = group.variants.values() if tag is None else (group.variants[tag],)
    return next((children(model)[name] for model in models if name in model.model_fields), None)


def nearest(name: str, names: Iterable[str]) -> str:
    """The valid name most like a mistyped one; "" where none is near."""
    matches = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else ""


def correct(root: Group, parts: tuple[str, ...]) -> str:
    """The dotted key most like a mistyped one, corrected part by part; "" where a part has no near name."""
    node: Node = root
    done: list[str] = []
    for position, part in enumerate(parts):
        if isinstance(node, Leaf):
            return ""
        if isinstance(node, Table):
            if isinstance(node.value, Leaf):
                return ".".join((*done, *parts[position:]))
            done.append(part)
            node = node.value
            continue
        fields = node.fields()
        name = part if part in fields else nearest(part, fields)
        following = child(node, name) if name else None
        if following is None:
            return ""
        done.append(name)
        node = following
    return ".".join(done)


def keys_named(root: Group, name: str) -> list[str]:
    """Dotted keys of every single setting or section of exactly this name, at most two levels down."""
    return [
        f"{section}.{name}"
        for section in root.fields()
        if isinstance(inner := child(root, section), Group) and name in inner.fields()
    ]
