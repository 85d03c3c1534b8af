"""Readers of prompt files, by suffix, and of data sets on the hub: prompts as Arrow text arrays, in blocks.

Prompts stay in Arrow memory: a million of them as Python texts would take 100 MB more.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from common.errors import PromptSetError

PROMPT_COLUMNS = ("prompt", "text", "Prompt", "caption")
# Arrow's errors are ValueError, OSError and others; ArrowException covers the rest.
_ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
_BLOCK_ROWS = 10_000
_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
# Of a field; also of the other columns, which may hold whole articles.
_LONGEST_FIELD = 2**31 - 1

Row = tuple[int, Any]
"""The line that it begins at, and what its prompt column holds."""


def read_prompts(path: Path, column: str) -> Iterator[pa.StringArray]:
    """The prompts of one existing file, in order, without surrounding whitespace; none is null or blank.

    column: the column of a table; "" = the first there is of PROMPT_COLUMNS.
    Raises PromptSetError naming the file and, where it is known, the line or row.
    """
    if path.suffix.lower() not in READERS:
        kind = f"files of {path.suffix}" if path.suffix else "a file without a suffix"
        raise PromptSetError(f"{path}: cannot read {kind}; {known_formats()}")
    if path.stat().st_size == 0:
        raise PromptSetError(f"{path} is empty")
    try:
        yield from READERS[path.suffix.lower()](path, column)
    except _ARROW_ERRORS as error:
        _refuse_bytes(path)
        raise PromptSetError(f"{path} is not a readable {path.suffix} file: {error}") from error


def known_formats() -> str:
    """For an error: "known are .txt, ..."."""
    return f"known are {', '.join(READERS)}"


def _read_text(path: Path, column: str) -> Iterator[pa.StringArray]:
    if column:
        raise PromptSetError(f"{path}: column is {column!r}, but a .txt file has no columns; leave it empty")
    # A table of one column, with a delimiter that no text holds.
    with arrow_csv.open_csv(
        path,
        read_options=arrow_csv.ReadOptions(column_names=["prompt"]),
        parse_options=arrow_csv.ParseOptions(delimiter="\x01", quote_char=False),
        convert_options=arrow_csv.ConvertOptions(column_types={"prompt": pa.string()}),
    ) as reader:
        for batch in reader:
            prompts = pc.utf8_trim_whitespace(batch.column(0))
            yield prompts.filter(pc.greater(pc.binary_length(prompts), 0))


def _read_parquet(path: Path, column: str) -> Iterator[pa.StringArray]:
    with pq.ParquetFile(path) as file:
        chosen = _choose_column(path, file.schema_arrow.names, column)
        kind = file.schema_arrow.field(chosen).type
        if (kind.value_type if pa.types.is_dictionary(kind) else kind) not in _TEXT_TYPES:
            raise PromptSetError(f"{path}: column {chosen!r} must be text, it holds {kind}")
        row = 1
        for batch in file.iter_batches(columns=[chosen]):
            batch.validate(full=True)
            texts = pc.utf8_trim_whitespace(batch.column(0).cast(pa.string()))
            present = pc.fill_null(pc.greater(pc.binary_length(texts), 0), False)
            bad = pc.index(present, False).as_py()
            if bad >= 0:
                what = "blank" if texts[bad].is_valid else "missing"
                raise PromptSetError(f"{path}, row {row + bad}: the prompt (column {chosen!r}) is {what}")
            row += len(texts)
            yield texts


def _jsonl_rows(path: Path, column: str) -> Iterator[Row]:
    chosen = ""
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise PromptSetError(
                    f"{path}, line {line}, column {error.colno}: not valid JSON: {error.msg}"
                ) from error
            except RecursionError as error:
                raise PromptSetError(f"{path}, line {line}: nested too deep") from error
            if not isinstance(value, dict):
                raise PromptSetError(f'{path}, line {line}: must be an object such as {{"prompt": "a cat"}}')
            chosen = chosen or _choose_column(path, list(value), column)
            yield line, value.get(chosen)


def _table_rows(path: Path, column: str, delimiter: str, quoting: Literal[0, 3]) -> Iterator[Row]:
    """quoting: csv's."""
    hint = "close every quote, and put a field that holds a comma in quotes"
    hint = hint if quoting == csv.QUOTE_MINIMAL else "separate fields by tabs"
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        header: list[str] = []
        line = 1
        try:
            for row in table:
                if not header:
                    header = row
                    place = header.index(_choose_column(path, header, column))
                elif row and len(row) != len(header):
                    fields = f"{len(row)} fields where the header has {len(header)}"
                    raise PromptSetError(f"{path}, line {line}: {fields}; {hint}")
                elif row:
                    yield line, row[place]
                line = table.line_num + 1
        except csv.Error as error:
            raise PromptSetError(f"{path}, line {line}: not a valid table: {error}; {hint}") from error


def _choose_column(path: Path, names: list[str], column: str) -> str:
    found = [name for name in ((column,) if column else PROMPT_COLUMNS) if name in names]
    if not found:
        missing = f"no column {column!r}" if column else f"none of the columns {', '.join(PROMPT_COLUMNS)}"
        raise PromptSetError(f"{path} has {missing}; set column to one of its own: {', '.join(names)}")
    if names.count(found[0]) > 1:
        raise PromptSetError(f"{path} has {names.count(found[0])} columns named {found[0]!r}; rename one")
    return found[0]


def _from_rows(read: Callable[[Path, str], Iterator[Row]], path: Path, column: str) -> Iterator[pa.Array]:
    prompts = (_prompt(path, line, value) for line, value in read(path, column))
    while block := list(islice(prompts, _BLOCK_ROWS)):
        yield pa.array(block, pa.string())


def _prompt(path: Path, line: int, value: Any) -> str:
    if not isinstance(value, str) and value is not None:
        raise PromptSetError(f"{path}, line {line}: the prompt must be text, got {type(value).__name__}")
    if value is None or not value.strip():
        raise PromptSetError(f"{path}, line {line}: the prompt is {'missing' if value is None else 'blank'}")
    return value.strip()


def _refuse_bytes(path: Path) -> None:
    """Raise the error of the first line that is not UTF-8, where the file is a text."""
    if path.suffix.lower() == ".parquet":
        return
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            try:
                data.decode()
            except UnicodeDecodeError as error:
                raise PromptSetError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


READERS: dict[str, Callable[[Path, str], Iterator[pa.StringArray]]] = {
    ".txt": _read_text,
    ".jsonl": partial(_from_rows, _jsonl_rows),
    ".csv": partial(_from_rows, partial(_table_rows, delimiter=",", quoting=csv.QUOTE_MINIMAL)),
    # Without quotes, as the registered type has it: published sets begin prompts with a quotation mark.
    ".tsv": partial(_from_rows, partial(_table_rows, delimiter="\t", quoting=csv.QUOTE_NONE)),
    ".parquet": _read_parquet,
}

# The first of these that a data set of the hub has is read. Not .txt: licences and notes are texts too.
_HUB_FORMATS = (".parquet", ".jsonl", ".csv", ".tsv")
_TRAIN = re.compile(r"(?<![a-z])train(?![a-z])", re.IGNORECASE)
_OTHER_SPLIT = re.compile(r"(?<![a-z])(validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)


def download_files(data_set: str, revision: str) -> list[Path]:
    """The prompt files of a data set, sorted by name: those of the split "train" where names carry a split.

    Fetches files that may hold prompts and no others, first those with "train" in their names. With
    HF_HUB_OFFLINE=1 it takes what is in the cache.
    Raises PromptSetError where the data set cannot be had or holds no such file.
    """
    files = _fetch(data_set, revision, "*train*")
    files = {name: path for name, path in files.items() if _TRAIN.search(name)}
    if not files:
        every = _fetch(data_set, revision, "*")
        files = {name: path for name, path in every.items() if not _OTHER_SPLIT.search(name)} or every
    if not files:
        formats = " or ".join(_HUB_FORMATS)
        raise PromptSetError(f"The data set {data_set} (revision {revision}) has no {formats} file")
    suffix = min((path.suffix for path in files.values()), key=_HUB_FORMATS.index)
    return [path for path in files.values() if path.suffix == suffix]


def _fetch(data_set: str, revision: str, pattern: str) -> dict[str, Path]:
    """Files of the known formats by name inside the data set, sorted."""
    # Imported here because it takes a third of a second that a local file need not wait for.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    patterns = [pattern + suffix for suffix in _HUB_FORMATS]
    wanted = f"There is no file {data_set}, and the data set {data_set} at {revision}"
    try:
        folder = Path(
            snapshot_download(data_set, repo_type="dataset", revision=revision, allow_patterns=patterns)
        )
    except LocalEntryNotFoundError as error:
        raise PromptSetError(f"{wanted} is not in the cache, and the hub not reached: {error}") from error
    except (HFValidationError, OSError, HTTPError) as error:
        raise PromptSetError(f"{wanted} cannot be had from the hub: {error}") from error
    found = sorted(path for path in folder.rglob("*") if path.suffix in _HUB_FORMATS and path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}
