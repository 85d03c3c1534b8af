"""YAML as this project reads and writes it: YAML 1.2 scalars, no key twice, errors with line and column.

PyYAML reads YAML 1.1, where 1e-4 is a text, `no` is false, 010 is 8 and 1:30 is 90. Here 1e-4 is a number,
and the other three are what they look like.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from common.errors import ConfigError

_INT = re.compile(r"[-+]?[0-9]+$|0x[0-9a-fA-F]+$")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_RESOLVERS = (
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", re.compile(r"(?:<<)$"), ["<"]),
)


def _at(node: yaml.Node, text: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


class _Reader(yaml.SafeLoader):
    """SafeLoader with the plain scalars of YAML 1.2; mappings have text keys, each once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that is no text or comes twice is a ConstructorError at its place."""
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return super().construct_mapping(node, deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _at(key, f"keys must be text, got {text}; write it in quotes if it is meant")
            if key.value in seen:
                raise _at(key, f"the key {key.value} is given twice, first on line {seen[key.value]}")
            seen[key.value] = key.start_mark.line + 1


def _construct_int(reader: _Reader, node: yaml.ScalarNode) -> int:
    text = str(reader.construct_scalar(node))
    return int(text, 16) if text.startswith("0x") else int(text)


class _Writer(yaml.SafeDumper):
    """SafeDumper that quotes what either YAML 1.1 or 1.2 would read as something other than text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {  # noqa: RUF012 - PyYAML's
        key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Always: a configuration reads better without anchors."""
        return True


def _represent_text(writer: _Writer, text: str) -> yaml.ScalarNode:
    unusual_breaks = "\x85" in text or "\u2028" in text or "\u2029" in text
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style='"' if unusual_breaks else None)


_Writer.add_representer(str, _represent_text)
for _tag, _pattern, _first in _RESOLVERS:
    _Reader.add_implicit_resolver(_tag, _pattern, _first)
    _Writer.add_implicit_resolver(_tag, _pattern, _first)
_Reader.add_constructor("tag:yaml.org,2002:int", _construct_int)


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
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        place = f"line {line}, column {column}"
        raise ConfigError(f"{origin}, {place}: not valid YAML: {error.reason}") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from error


def write_yaml(value: Any) -> str:
    """A YAML text that read_yaml reads as an equal value; keys keep their order."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=100)
