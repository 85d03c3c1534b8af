"""From a YAML file and command-line overrides to one validated Config, and back. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.config.overrides import apply_overrides, plain_copy
from common.config.problems import Sources, problem_lines, show
from common.config.schema import Config
from common.config.tree import Group
from common.config.yaml_text import read_yaml, write_yaml
from common.errors import ConfigError

ROOT = Group({"": Config})


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, set each `key.sub=value` of overrides in order (the last one wins), and validate.

    Raises ConfigError for a file that is missing or no YAML mapping; and for unknown keys and impossible
    values, all of them at once, one a line.
    """
    return config_from_yaml_text(_read(path), str(path), overrides)


def config_from_yaml_text(text: str, origin: str = "configuration", overrides: Sequence[str] = ()) -> Config:
    """Like load_config, from the text of a file; origin names it in errors."""
    value = read_yaml(text, origin)
    if value is None:
        raise ConfigError(f"{origin} is empty. {_needs()}")
    if not isinstance(value, dict):
        raise ConfigError(f"{origin} must hold settings (key: value), got {show(value)}. {_needs()}")
    given = plain_copy(ROOT, value)
    overridden = apply_overrides(ROOT, given, overrides)
    problems = list(overridden.problems)
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        problems += problem_lines(error, Sources(ROOT, given, overridden.keys))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n  ".join([f"{origin}: {count}", *problems]))
    return config


def config_to_yaml(config: Config) -> str:
    """Every setting, defaults included, as YAML that config_from_yaml_text reads as an equal Config."""
    return write_yaml(config.model_dump(mode="json"))


def config_differences(a: Config, b: Config) -> list[str]:
    """One line a setting that differs, "key: value in a against value in b", in the order of the schema."""
    in_a, in_b = _leaves(a.model_dump(mode="json")), _leaves(b.model_dump(mode="json"))
    return [
        f"{key}: {_shown(in_a, key)} against {_shown(in_b, key)}"
        for key in dict.fromkeys((*in_a, *in_b))
        if in_a.get(key) != in_b.get(key)
    ]


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return show(leaves[key], longest=200) if key in leaves else "not set"


def _leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        key = prefix + name
        leaves |= _leaves(item, f"{key}.") if isinstance(item, dict) else {key: item}
    return leaves


def _needs() -> str:
    required = [name for name, info in Config.model_fields.items() if info.is_required()]
    return f"It needs at least: {', '.join(required)}."


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"There is no configuration file {path}{_near_files(path)}") from error
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": the folder {folder} does not exist."
    names = sorted(item.name for item in folder.iterdir() if item.suffix in (".yaml", ".yml"))
    near = get_close_matches(path.name, names, n=3, cutoff=0.4) or names[:8]
    return f"; did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "."
