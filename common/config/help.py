"""The text of --help: every setting of the configuration tree, written from the models themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from pydantic.fields import FieldInfo

from common.config.fields import Section
from common.config.problems import show
from common.config.schema import Config
from common.config.tree import Group, Leaf, Node, Table, children

_WIDTH = 110
_HOW = (
    "Settings stand in the YAML file; key=value on the command line replaces one of them, for example "
    "sampling.steps=20, policy.kind=full or rewards.clip.weight=2. NAME stands for a name that you choose."
)


def help_text(usage: str, flags: Mapping[str, str]) -> str:
    """usage: the command; flags: the meaning of each --flag. Lines are at most 110 columns wide."""
    options = {**flags, "--help": "print this and end"}
    lines = [f"Usage: {usage}", "", "Options:"]
    lines += [_hanging(f"  {flag:<18}{meaning}", 20) for flag, meaning in options.items()]
    lines += ["", _hanging(_HOW, 0)]
    for name, node in children(Config).items():
        info = Config.model_fields[name]
        lines += ["", _hanging(f"{name}: {_about(node, info)}", 2), *_node_lines(name, node, info)]
    return "\n".join(lines)


def _hanging(text: str, indent: int) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)


def _about(node: Node, info: FieldInfo) -> str:
    """The description of a field, else the first line of its section's docstring."""
    if info.description or not isinstance(node, Group):
        return info.description or ""
    (model,) = node.variants.values()
    return _first_line(model)


def _first_line(model: type[Section]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _node_lines(key: str, node: Node, info: FieldInfo) -> Iterator[str]:
    if isinstance(node, Leaf):
        yield _setting(key, node, info)
    elif isinstance(node, Table) and isinstance(node.value, Leaf):
        yield _setting(f"{key}.NAME", node.value, info)
    elif isinstance(node, Table):
        yield from _node_lines(f"{key}.NAME", node.value, info)
    elif node.by_key:
        yield from _keyed_lines(key, node)
    elif node.is_choice:
        yield from _choice_lines(key, node)
    else:
        (model,) = node.variants.values()
        yield from _model_lines(key, model)


def _model_lines(key: str, model: type[Section], without: str = "") -> Iterator[str]:
    for name, node in children(model).items():
        if name != without:
            yield from _node_lines(f"{key}.{name}", node, model.model_fields[name])


def _choice_lines(key: str, group: Group) -> Iterator[str]:
    """The kind, then the settings that each kind has."""
    tags = " or ".join(group.variants)
    yield _head(f"{key}.{group.discriminator}", f"= {group.default_tag}", "", tags)
    for tag, model in group.variants.items():
        yield f"    {tag}: {_first_line(model)}"
        yield from _model_lines(key, model, without=group.discriminator)


def _keyed_lines(key: str, group: Group) -> Iterator[str]:
    """The settings that each form has of its own, then those that all of them have."""
    models = list(group.variants.values())
    shared = set.intersection(*(set(children(model)) for model in models))
    yield f"  {key}  ({group.allowed})"
    for tag, model in group.variants.items():
        yield f"    {tag}: {_first_line(model)}"
        for name, node in children(model).items():
            if name not in shared:
                yield from _node_lines(f"{key}.{name}", node, model.model_fields[name])
    yield "    with each of them:"
    for name, node in children(models[0]).items():
        if name in shared:
            yield from _node_lines(f"{key}.{name}", node, models[0].model_fields[name])


def _setting(key: str, leaf: Leaf, info: FieldInfo) -> str:
    default = "required" if info.is_required() else f"= {_default(info)}"
    extra = info.json_schema_extra
    unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    return f"{_head(key, default, unit, leaf.allowed)}\n{_hanging(' ' * 6 + (info.description or ''), 6)}"


def _default(info: FieldInfo) -> str:
    default = info.default
    if isinstance(default, dict):
        return "none"
    return default if isinstance(default, str) and default else show(default, longest=_WIDTH)


def _head(key: str, default: str, unit: str, allowed: str) -> str:
    named = f"  {key} {default}" + (f" [{unit}]" if unit else "")
    return _hanging(f"{named}  ({allowed})", 6)
