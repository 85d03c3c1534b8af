"""From a YAML file and command-line overrides to one validated Config, and back. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config.problems import validate
from common.config.schema import Config
from common.config.tree import (
    Node,
    allowed,
    fields,
    is_setting,
    is_table,
    kind_key,
    may_be_null,
    near_keys,
    show,
    tree_of,
    unknown_key,
    variants,
)
from common.config.yaml_text import read_yaml, write_yaml
from common.errors import ConfigError
from common.hidden import remember_options, without_secrets
from common.places import near_paths

_FORM = "write key.sub=value, for example sampling.steps=20"


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, set each `key.sub=value` of overrides in order (the last one wins), and validate.

    Raises ConfigError for a file that is missing or no YAML mapping; and for unknown keys and impossible
    values, all of them at once, one a line.
    """
    return config_from_yaml_text(_read(path), str(path), overrides)


def config_from_yaml_text(text: str, origin: str = "configuration", overrides: Sequence[str] = ()) -> Config:
    """Like load_config, from the text of a file; origin names it in errors."""
    root, values = tree_of(Config), read_yaml(text, origin)
    if not isinstance(values, dict):
        what = f"must hold settings (key: value), got {show(values)}" if values is not None else "is empty"
        raise ConfigError(f"{origin} {what}. It needs at least: {', '.join(root['required'])}.")
    values = _whole(root, values)
    keys, problems = apply_overrides(root, values, overrides)
    marked = {".".join(parts) for parts in keys}
    config = validate(Config, _whole(root, values), origin, marked=marked, problems=problems)
    remember_options(config.model_dump(mode="json"))
    return config


def config_to_yaml(config: Config) -> str:
    """Every setting, defaults included, as YAML that config_from_yaml_text reads as an equal Config."""
    return write_yaml(config.model_dump(mode="json"))


def public_yaml(config: Config) -> str:
    """The same for the eyes of others: what is named like a secret is hidden."""
    return write_yaml(without_secrets(config.model_dump(mode="json")))


def meant_setting(key: str) -> str | None:
    """The dotted key that a text names, or the one it was probably meant for; None where it is no key."""
    parts = key.strip().split(".")
    if not re.fullmatch(r"[\w./-]+", key.strip()) or not all(parts):
        return None
    root = node = tree_of(Config)
    for position, part in enumerate(parts):
        below = fields(node, part)
        if below and part not in below:
            return near_keys(root, parts) or (key.strip() if position else None)
        node = below.get(part, {})
    return key.strip()


def config_differences(a: Config, b: Config) -> list[str]:
    """One line a setting that differs, "key: value in a against value in b", in the order of the schema."""
    in_a, in_b = flat_settings(a), flat_settings(b)

    def shown(leaves: Mapping[str, Any], key: str) -> str:
        return show(leaves[key], longest=200) if key in leaves else "not set"

    return [
        f"{key}: {shown(in_a, key)} against {shown(in_b, key)}"
        for key in dict.fromkeys((*in_a, *in_b))
        if in_a.get(key) != in_b.get(key)
    ]


def flat_settings(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key."""
    return _leaves(config.model_dump(mode="json"))


def _leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        key = prefix + name
        leaves |= _leaves(item, f"{key}.") if isinstance(item, dict) else {key: item}
    return leaves


def _whole(node: Node, value: Any) -> Any:
    """A copy along the schema, so that no two keys share a mapping, with what may be left out written out.

    An empty section (null) becomes a mapping without keys, a section's shorthand the mapping it stands for,
    and a choice between kinds names its kind.
    """
    if is_setting(node):
        return value
    if isinstance(value, str) and node.get("shorthand"):
        return {node["shorthand"]: value}
    if value is None and not is_table(node) and not may_be_null(node):
        value = {}
    if not isinstance(value, dict):
        return value
    key = kind_key(node)
    default = {key: node["default"][key]} if key and "default" in node else {}
    return default | {name: _whole(fields(node, name).get(name, {}), item) for name, item in value.items()}


def apply_overrides(
    root: Node, values: dict[str, Any], overrides: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Set each override in `values`, in order. Returns the keys that were set, and a line for each problem.

    Another kind chosen on the command line drops the keys that it does not have, and those that it has
    another default for, but for keys that are given on the command line too: of these validation refuses what
    the kind does not have.
    """
    settings: dict[tuple[str, ...], Any] = {}
    problems: list[str] = []
    for text in overrides:
        try:
            parts, value = _parse(root, text)
            settings.pop(parts, None)
            settings[parts] = value
        except ConfigError as error:
            problems.append(str(error))
    for parts, value in settings.items():
        node, mapping = root, values
        for part in parts[:-1]:
            node = fields(node, part)[part]
            inner = _whole(node, mapping.get(part))
            mapping[part] = mapping = inner if isinstance(inner, dict) else {}
        before = mapping.get(parts[-1])
        mapping[parts[-1]] = value
        for key in _foreign(node, parts[-1], value, before) & mapping.keys():
            if not any(other[: len(parts)] == (*parts[:-1], key) for other in settings):
                del mapping[key]
    return list(settings), problems


def _foreign(node: Node, name: str, value: Any, before: Any) -> set[str]:
    """Keys of a choice whose values are not meant for the kind just chosen: those that it does not have, and
    those that mean something else there, as another default shows. None where the setting chose no kind.

    name, value, before: of the setting, now and before.
    """
    tags, key = variants(node), kind_key(node)
    tag = value if key == name else None if key else name
    if tag not in tags:
        return set()
    ours = fields(tags[tag])
    theirs = fields(tags[before]) if key and before in tags else {}
    others = {one for one in ours.keys() & theirs.keys() if not _same_default(ours[one], theirs[one])}
    return (fields(node).keys() - ours.keys()) | (others - {name})


def _same_default(first: Node, second: Node) -> bool:
    return bool(first.get("default") == second.get("default"))


def _parse(root: Node, text: str) -> tuple[tuple[str, ...], Any]:
    """The key of an override as the names of nested mappings, and its value.

    In a table of single settings the rest is one name, because names such as ray.io/zone hold dots. A text
    setting takes the characters as they are, unless quoted; everything else is YAML.
    """
    key, equals, raw = (part.strip() for part in text.partition("="))
    if text.startswith("-"):
        raise ConfigError(f"{show(text)}: overrides take no dashes; {_FORM}")
    parts = tuple(key.split("."))
    if not equals or not all(parts):
        raise ConfigError(f"{show(text)}: not an override; {_FORM}")
    node = root
    for position, part in enumerate(parts):
        if is_table(node) and is_setting(node["additionalProperties"]):
            parts, node = (*parts[:position], ".".join(parts[position:])), node["additionalProperties"]
            break
        below = fields(node, part)
        if not below:
            single = f"{'.'.join(parts[:position])} is a single setting ({allowed(node)})"
            raise ConfigError(f"{key}: {single} and holds no keys")
        if part not in below:
            raise ConfigError(unknown_key(root, parts, node))
        node = below[part]
    if node.get("type") == "string" and "enum" not in node and raw[:1] not in ("'", '"'):
        return parts, raw
    return parts, _whole(node, read_yaml(raw, f"{key}={raw}"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"There is no configuration file {path}{_near_files(path)}") from error
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": the folder {folder} does not exist."
    near = near_paths(path, lambda item: item.suffix in (".yaml", ".yml"))
    return f"; did you mean {' or '.join(near)}?" if near else "."
