"""YAML as this project reads and writes it: YAML 1.2 scalars, no key twice, errors with line and column.

PyYAML reads YAML 1.1, where 1e-4 is a text, `no` is false, 010 is 8 and 1:30 is 90. Here 1e-4 is a number,
and the other three are what they look like.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from common.errors import ConfigError

_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
# Name of the tag, what a scalar of it looks like, and its first characters.
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+.0123456789"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", ["<"]),
)
_TAG = "tag:yaml.org,2002:"


class _Reader(yaml.SafeLoader):
    """SafeLoader with the plain scalars of YAML 1.2; mappings have text keys, each once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that is no text or comes twice is a ConstructorError at its place."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            problem = f"the key {text} is given twice" if text in seen else ""
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                problem = f"keys must be text, got {text}; write it in quotes if it is meant"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(text)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Decimal, also with leading zeros, or 0x and hexadecimal digits."""
        text = str(self.construct_scalar(node))
        return int(text, 16) if text.startswith("0x") else int(text)


class _Writer(yaml.SafeDumper):
    """SafeDumper that quotes what either YAML 1.1 or 1.2 would read as something other than text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's
        key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Always: a configuration reads better without anchors."""
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """In double quotes where the text holds line ends that only Unicode knows."""
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar(f"{_TAG}str", text, style=style)


for _name, _pattern, _first in _SCALARS:
    for _class in (_Reader, _Writer):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), _first)
_Reader.add_constructor(f"{_TAG}int", _Reader.construct_yaml_int)
_Writer.add_representer(str, _Writer.represent_text)


def read_yaml(text: str, origin: str) -> Any:
    """The value of a YAML text. Raises ConfigError with origin, line and column."""
    try:
        return yaml.load(text, Loader=_Reader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        about = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{origin}{place}: not valid YAML: {about}") from error
    except yaml.reader.ReaderError as error:
        line, column = (
            text.count("\n", 0, error.position) + 1,
            error.position - text.rfind("\n", 0, error.position),
        )
        raise ConfigError(
            f"{origin}, line {line}, column {column}: not valid YAML: {error.reason}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from error


def write_yaml(value: Any) -> str:
    """A YAML text that read_yaml reads as an equal value; keys keep their order."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=100)
