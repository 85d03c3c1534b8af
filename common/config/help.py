"""The text of --help: every setting of the configuration tree, written from the models themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from common.config.schema import Config
from common.config.tree import (
    Node,
    about,
    allowed,
    fields,
    is_setting,
    is_table,
    kind_key,
    show,
    tree_of,
    variants,
)

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
    for name, node in fields(tree_of(Config)).items():
        lines += ["", _hanging(f"{name}: {about(node)}", 2), *_lines(name, node)]
    return "\n".join(lines)


def _hanging(text: str, indent: int) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)


def _lines(key: str, node: Node) -> Iterator[str]:
    if is_setting(node):
        yield _setting(key, node)
    elif is_table(node):
        entry = node["additionalProperties"]
        kept = {name: node[name] for name in ("description", "unit", "default") if name in node}
        yield from _lines(f"{key}.NAME", entry | kept if is_setting(entry) else entry)
    elif "oneOf" in node:
        yield from _choice(key, node)
    else:
        for name, below in fields(node).items():
            yield from _lines(f"{key}.{name}", below)


def _choice(key: str, node: Node) -> Iterator[str]:
    """How to choose, then the settings that each kind has of its own, then those that all of them share."""
    kind, tags = kind_key(node), variants(node)
    chosen = f".{kind} = {node['default'][kind]}" if kind else ""
    yield _hanging(f"  {key}{chosen}  ({' or '.join(tags) if kind else allowed(node)})", 6)
    shared = {
        name: below
        for name, below in fields(node).items()
        if name != kind and all(fields(section).get(name) == below for section in tags.values())
    }
    for tag, section in tags.items():
        yield _hanging(f"    {tag}: {about(section)}", 6)
        for name, below in fields(section).items():
            if name != kind and name not in shared:
                yield from _lines(f"{key}.{name}", below)
    if shared:
        yield "    with each of them:"
    for name, below in shared.items():
        yield from _lines(f"{key}.{name}", below)


def _setting(key: str, node: Node) -> str:
    default = "required"
    if "default" in node:
        plain = isinstance(node["default"], str) and node["default"]
        default = f"= {node['default'] if plain else show(node['default'], longest=_WIDTH)}"
    unit = f" [{node['unit']}]" if node.get("unit") else ""
    head = _hanging(f"  {key} {default}{unit}  ({allowed(node)})", 6)
    return f"{head}\n{_hanging(' ' * 6 + about(node), 6)}"
