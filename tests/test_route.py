"""docs/architecture.md begins with the route of one prompt: its files and record types are there, and few."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_FILES, MOST_EDGES, MOST_RECORDS = 25, 3, 10
ROW = re.compile(r"^\| \d+ \| `(?P<file>[\w/]+\.py)` (?P<names>[^|]*)\|(?P<told>[^|]*)\|", re.MULTILINE)


@cache
def route() -> list[tuple[str, list[str], list[str], bool]]:
    """File, names in it, records that begin there, and whether it is an edge: the rows of the first table."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## The route of one prompt", 1)[1].split("\n## ", 1)[0]
    found = []
    for row in ROW.finditer(section):
        names = re.findall(r"`([A-Za-z_][\w.]*)`", row["names"])
        records = re.findall(r"\*\*(\w+)\*\*", row["told"])
        found.append((row["file"], names, records, "*edge*" in row["told"]))
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
        for file, names, _, _ in route()
        for name in names
        if not (ROOT / file).is_file() or name not in defined_in(file)
    ]
    assert missing == []


def test_the_route_is_short() -> None:
    files = [file for file, _, _, _ in route()]
    edges = [file for file, _, _, is_edge in route() if is_edge]
    records = [record for _, _, told, _ in route() for record in told]
    assert len(files) == len(set(files)) <= MOST_FILES
    assert len(edges) <= MOST_EDGES
    assert len(records) == len(set(records)) <= MOST_RECORDS


def test_every_record_is_a_class_of_a_file_on_the_route() -> None:
    there = {name for file, _, _, _ in route() for name in defined_in(file)}
    assert [record for _, _, told, _ in route() for record in told if record not in there] == []


def test_a_run_imports_every_file_of_the_route() -> None:
    """Directly or by way of others: nothing on the page is dead."""
    reached, waiting = set[str](), ["driver/main.py"]
    while waiting:
        file = waiting.pop()
        reached.add(file)
        waiting += imported_by(file) - reached
    assert [file for file, _, _, _ in route() if file not in reached] == []
