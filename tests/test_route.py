"""docs/architecture.md begins with the route of one prompt: its files and record types are there, and few."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_FILES, MOST_RECORDS = 25, 10
ROW = re.compile(r"^\| \d+ \| `(?P<file>[\w/]+\.py)` (?P<names>[^|]*)\|(?P<told>[^|]*)\|", re.MULTILINE)


@cache
def route() -> list[tuple[str, list[str], list[str]]]:
    """File, names in it, and records that first appear there, of each row of the page's first table."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## The route of one prompt", 1)[1].split("\n## ", 1)[0]
    found = []
    for row in ROW.finditer(section):
        names = re.findall(r"`([A-Za-z_][\w.]*)`", row["names"])
        found.append((row["file"], names, re.findall(r"\*\*(\w+)\*\*", row["told"])))
    return found


@cache
def defined_in(file: str) -> frozenset[str]:
    """Classes, functions and methods (Class.method) of a file."""
    found: set[str] = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return frozenset(found)


@cache
def imported_by(file: str) -> frozenset[str]:
    """Our files that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for module in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                found |= {name for name in _files_of(module) if (ROOT / name).is_file()}
    return frozenset(found)


def _files_of(module: str) -> tuple[str, str]:
    path = module.replace(".", "/")
    return f"{path}.py", f"{path}/__init__.py"


def test_the_page_names_files_and_classes_that_are_there() -> None:
    assert route()
    missing = [
        f"{file}: {name}"
        for file, names, _ in route()
        for name in names
        if not (ROOT / file).is_file() or name not in defined_in(file)
    ]
    assert missing == []


def test_the_route_is_short() -> None:
    files = {file for file, _, _ in route()}
    records = [record for _, _, told in route() for record in told]
    assert len(files) <= MOST_FILES
    assert len(records) == len(set(records)) <= MOST_RECORDS


def test_every_record_is_a_class_of_a_file_on_the_route() -> None:
    there = {name for file, _, _ in route() for name in defined_in(file)}
    assert [record for _, _, told in route() for record in told if record not in there] == []


def test_no_file_is_on_the_route_that_none_of_the_others_uses() -> None:
    """But for the first: the others are imported by one that stands on the route, or started by it on Ray."""
    files = list(dict.fromkeys(file for file, _, _ in route()))
    used = frozenset[str]().union(*(imported_by(file) for file in files))
    assert [file for file in files[1:] if file not in used] == []
