"""Prompt suites that papers report, read from the files that their own repositories publish.

    geneval       prompts/evaluation_metadata.jsonl of djghosh13/geneval: prompt, tag, include, exclude
    drawbench     the sheet of the Imagen paper, saved as CSV: Prompts, Category
    partiprompts  PartiPrompts.tsv of google-research/parti: Prompt, Category, Challenge, Note
    pickapic      data/test_unique-….parquet of yuvalkirstain/pickapic_v1 or _v2: caption, and much else
    hpdv2         folder benchmark of the HPDv2 data set: a JSON list of prompts for each of four styles

A file is read by its suffix and columns, so any other table with such columns is a suite, too, as is
HPDv2's test.json. Suites have some thousand prompts at most; what training draws is read by prompt_files.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import PromptSetError
from driver.run.prompt_files import PROMPT_COLUMNS
from driver.run.prompts import shuffled

FOLDER = Path("suites")
"""Where a suite given by name is looked for."""
SUITES = {
    "geneval": "evaluation_metadata.jsonl",
    "drawbench": "drawbench.csv",
    "partiprompts": "PartiPrompts.tsv",
    "pickapic": "test_unique*.parquet",
    "hpdv2": "benchmark",
}
"""The file, or pattern of its name, or folder of each suite that has a name."""
HPDV2_STYLES = ("anime", "concept-art", "paintings", "photo")
CATEGORY_COLUMNS = ("tag", "category", "Category")
# Of the uses of a seed in driver.run.prompts none is this one.
_SUITE_SAMPLE = 2

Row = dict[str, Any]


@dataclass(frozen=True)
class SuitePrompt:
    """index: position in the suite, which names the prompt's noise. category: "" where the suite has none.
    metadata: the other columns, such as the objects that GenEval's detector has to find."""

    index: int
    prompt: str
    category: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """digest: SHA-256 (hex) of all prompts and categories of the file, also where only some are taken."""

    name: str
    origin: str
    digest: str
    prompts: tuple[SuitePrompt, ...]

    def sample(self, count: int, seed: int) -> Suite:
        """count of the prompts, drawn by seed, in the suite's order. Raises PromptSetError for too many."""
        if count > len(self.prompts):
            raise PromptSetError(
                f"{self.origin} has {len(self.prompts)} prompts, {count} are asked for; leave the number out "
                "to take all"
            )
        chosen = sorted(shuffled(len(self.prompts), seed, (_SUITE_SAMPLE,))[:count])
        return replace(self, prompts=tuple(self.prompts[place] for place in chosen))


def read_suite(given: str) -> Suite:
    """A suite by name, from FOLDER, or from a file. Raises PromptSetError, naming the row."""
    name, place = given, Path(given)
    if given in SUITES:
        found = sorted(FOLDER.glob(SUITES[given]))
        if len(found) != 1:
            raise PromptSetError(
                f"Suite {given!r} is read from {FOLDER / SUITES[given]}, of which there are {len(found)} "
                "here; put the published file there, or give its path in place of the name"
            )
        place = found[0]
    elif not place.exists():
        raise PromptSetError(
            f"There is no suite and no file {given!r}. Suites by name, read from the folder {FOLDER}: "
            f"{', '.join(SUITES)}"
        )
    else:
        # The name is part of the noise's: a published file has the same, however it is given.
        name = next((known for known, file in SUITES.items() if place.match(file)), place.stem)
    prompts = tuple(_prompts(place, _rows(place)))
    if not prompts:
        raise PromptSetError(f"{place} holds no prompts")
    known = json.dumps([(one.prompt, one.category) for one in prompts]).encode()
    return Suite(name, str(place), hashlib.sha256(known).hexdigest(), prompts)


def _rows(place: Path) -> list[Row]:
    if place.is_dir():
        return [row for style in HPDV2_STYLES for row in _style(place / f"{style}.json")]
    suffix = place.suffix.lower()
    if suffix not in _READERS:
        raise PromptSetError(f"{place} is no suite: known are {', '.join(_READERS)}, and HPDv2's folder")
    try:
        return _READERS[suffix](place)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error, pa.ArrowException) as error:
        raise PromptSetError(f"{place} is not a readable {place.suffix} file: {error}") from error


def _style(file: Path) -> list[Row]:
    if not file.is_file():
        raise PromptSetError(
            f"{file.parent} is a folder without {file.name}; HPDv2's benchmark has "
            f"{', '.join(f'{style}.json' for style in HPDV2_STYLES)}"
        )
    return [{**row, "category": file.stem} for row in _rows(file)]


def _read_json(file: Path) -> list[Row]:
    values = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(values, list):
        raise PromptSetError(f"{file} must hold a list of prompts, or of objects with a prompt")
    return [_row(f"{file}, item {number}", value) for number, value in enumerate(values, start=1)]


def _read_jsonl(file: Path) -> list[Row]:
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    return [
        _row(f"{file}, line {number}", json.loads(line))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _row(which: str, value: Any) -> Row:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise PromptSetError(f'{which}: must be a prompt, or an object such as {{"prompt": "a cat"}}')
    return value


def _read_table(file: Path, **form: Any) -> list[Row]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened, strict=True, **form))
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise PromptSetError(
                f"{file}, row {number} has more fields than the header: a prompt with a comma goes in quotes"
            )
    return [{name: value for name, value in row.items() if name} for row in rows]


def _read_parquet(file: Path) -> list[Row]:
    with pq.ParquetFile(file) as opened:
        # Texts alone: Pick-a-Pic keeps two images beside each prompt.
        fields = [field for field in opened.schema_arrow if field.type in (pa.string(), pa.large_string())]
        return list(opened.read(columns=[field.name for field in fields]).to_pylist())


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table,
    # Without quotes: PartiPrompts begins prompts with a quotation mark.
    ".tsv": partial(_read_table, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".parquet": _read_parquet,
}


def _prompts(place: Path, rows: Sequence[Row]) -> list[SuitePrompt]:
    names = list(rows[0]) if rows else []
    column = next((name for name in PROMPT_COLUMNS if name in names), "")
    if rows and not column:
        raise PromptSetError(
            f"{place} has none of the columns {', '.join(PROMPT_COLUMNS)}; its own are {', '.join(names)}"
        )
    category = next((name for name in CATEGORY_COLUMNS if name in names), "")
    found = []
    for index, row in enumerate(rows):
        prompt, kind = row.get(column), row.get(category, "")
        for name, value in ((column, prompt), (category, kind)):
            if not isinstance(value, str) or (name and not value.strip()):
                raise PromptSetError(f"{place}, row {index + 1}: {name!r} must be a text, got {value!r}")
        rest = {name: value for name, value in row.items() if name not in (column, category)}
        found.append(SuitePrompt(index, str(prompt).strip(), str(kind).strip(), rest))
    return found
