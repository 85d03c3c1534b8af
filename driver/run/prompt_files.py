"""Readers of prompt files, by suffix. Each yields the prompts as Arrow text arrays, block by block.

Prompts stay in Arrow memory: a million of them as Python texts would take a second and 100 MB more.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
import pyarrow.parquet as pq

from common.errors import PromptSetError

if TYPE_CHECKING:
    import _csv

PROMPT_COLUMNS = ("prompt", "text", "Prompt", "caption")
# Bytes read at once, and the longest line. Larger blocks are no faster and take many times their size.
_BLOCK = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Arrow's own errors are ValueError, OSError and others; ArrowException covers the rest.
_ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)

Reader = Callable[[Path, str], Iterator[pa.StringArray]]


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
    return READERS[path.suffix.lower()](path, column)


def known_formats() -> str:
    """For an error: "known are .txt, ..."."""
    return f"known are {', '.join(READERS)}"


def _read_text(path: Path, column: str) -> Iterator[pa.StringArray]:
    if column:
        raise PromptSetError(f"{path}: column is {column!r}, but a .txt file has no columns; leave it empty")
    for first_line, data in _whole_lines(path):
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line = first_line + data.count(b"\n", 0, error.start)
            raise PromptSetError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error
        prompts = pc.utf8_trim_whitespace(_split_lines(data))
        yield prompts.filter(pc.greater(pc.binary_length(prompts), 0))


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Blocks that end at a line's end, each with the number of its first line."""
    line, rest = 1, b""
    with path.open("rb") as file:
        if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
            file.seek(0)
        while block := file.read(_BLOCK):
            data = rest + block
            cut = data.rfind(b"\n") + 1
            if len(data) - cut > _BLOCK:
                raise _too_long(path, line + data.count(b"\n"))
            if cut:
                yield line, data[:cut]
            line += data.count(b"\n")
            rest = data[cut:]
    if rest:
        yield line, rest


def _too_long(path: Path, line: int) -> PromptSetError:
    return PromptSetError(f"{path}, line {line}: longer than {_BLOCK:,} bytes, too long for a prompt")


def _split_lines(data: bytes) -> pa.StringArray:
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")) + 1
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    offsets = np.concatenate(([0], ends)).astype(np.int32)
    return pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))


def _choose_column(path: Path, names: list[str], column: str) -> str:
    wanted = (column,) if column else PROMPT_COLUMNS
    found = [name for name in wanted if name in names]
    if not found:
        missing = f"no column {column!r}" if column else f"none of the columns {', '.join(PROMPT_COLUMNS)}"
        raise PromptSetError(f"{path} has {missing}; set column to one of its own: {', '.join(names)}")
    if names.count(found[0]) > 1:
        raise PromptSetError(f"{path} has {names.count(found[0])} columns named {found[0]!r}; rename one")
    return found[0]


def _checked(path: Path, column: str, blocks: Iterable[pa.Array]) -> Iterator[pa.StringArray]:
    """Trim; refuse a row without a prompt. Rows count from 1, a header not included."""
    row = 1
    for block in blocks:
        block.validate(full=True)
        texts = pc.utf8_trim_whitespace(block.cast(pa.string()))
        present = pc.fill_null(pc.greater(pc.binary_length(texts), 0), False)
        if not pc.all(present).as_py():
            bad = int(pc.index(present, False).as_py())
            what = "blank" if texts[bad].is_valid else "missing"
            raise PromptSetError(f"{path}, row {row + bad}: the prompt (column {column!r}) is {what}")
        row += len(texts)
        yield texts


def _read_jsonl(path: Path, column: str) -> Iterator[pa.StringArray]:
    try:
        chosen = _choose_column(path, _first_object_keys(path), column)
        with arrow_json.open_json(
            path,
            read_options=arrow_json.ReadOptions(block_size=_BLOCK),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=pa.schema([(chosen, pa.string())]), unexpected_field_behavior="ignore"
            ),
        ) as reader:
            yield from _checked(path, chosen, (batch.column(0) for batch in reader))
    except _ARROW_ERRORS as error:
        _explain_jsonl(path, column)
        raise PromptSetError(f"{path} is not valid JSONL (one object a line): {error}") from error


def _first_object_keys(path: Path) -> list[str]:
    return list(next((value for _, value in _json_objects(path)), {}))


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(line number, object) of each line that is not blank; PromptSetError at the first that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if len(line) > _BLOCK:
                raise _too_long(path, number)
            if line.strip():
                yield number, _json_object(path, number, line.removeprefix(_BYTE_ORDER_MARK))


def _json_object(path: Path, number: int, line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise PromptSetError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        place = f"{path}, line {number}, column {error.colno}"
        raise PromptSetError(f"{place}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise PromptSetError(f"{path}, line {number}: nested too deep") from error
    if not isinstance(value, dict):
        raise PromptSetError(f'{path}, line {number}: must be an object such as {{"prompt": "a cat"}}')
    return value


def _explain_jsonl(path: Path, column: str) -> None:
    """Raise the error of the first bad line; Arrow names lines within a block only."""
    chosen = _choose_column(path, _first_object_keys(path), column)
    for number, value in _json_objects(path):
        prompt = value.get(chosen)
        if prompt is not None and not isinstance(prompt, str):
            kind = type(prompt).__name__
            raise PromptSetError(f"{path}, line {number}: column {chosen!r} must be text, got {kind}")


def _read_csv(path: Path, column: str) -> Iterator[pa.StringArray]:
    return _read_delimited(path, column, ",", '"')


def _read_tsv(path: Path, column: str) -> Iterator[pa.StringArray]:
    """Without quoting, as the registered type has it: published sets begin prompts with a quotation mark."""
    return _read_delimited(path, column, "\t", "")


def _read_delimited(path: Path, column: str, delimiter: str, quote: str) -> Iterator[pa.StringArray]:
    quoted = bool(quote)
    parse = arrow_csv.ParseOptions(delimiter=delimiter, quote_char=quote or False, newlines_in_values=quoted)
    read = arrow_csv.ReadOptions(block_size=_BLOCK)
    try:
        _check_rows(path, delimiter, quote)
        with arrow_csv.open_csv(path, read_options=read, parse_options=parse) as header:
            chosen = _choose_column(path, header.schema.names, column)
        convert = arrow_csv.ConvertOptions(include_columns=[chosen], column_types={chosen: pa.string()})
        with arrow_csv.open_csv(
            path, read_options=read, parse_options=parse, convert_options=convert
        ) as reader:
            yield from _checked(path, chosen, (batch.column(0) for batch in reader))
    except _ARROW_ERRORS as error:
        _explain_bytes(path)
        raise PromptSetError(f"{path} is not a valid table: {error}") from error


def _check_rows(path: Path, delimiter: str, quote: str) -> None:
    """Refuse a row of another width than the header, or a quote left open, with its line.

    Arrow takes an open quote to reach to the next quote, rows away, and says nothing.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _python_rows(file, delimiter, quote)
        line = 0
        try:
            width = 0
            for row in rows:
                width = width or len(row)
                if row and len(row) != width:
                    hint = "put a field that holds a comma in quotes" if quote else "separate fields by tabs"
                    wrong = f"{len(row)} fields where the header has {width}; {hint}"
                    raise PromptSetError(f"{path}, line {line + 1}: {wrong}")
                line = rows.line_num
        except csv.Error as error:
            raise PromptSetError(f"{path}, line {line + 1}: not a valid table: {error}") from error


def _python_rows(file: TextIO, delimiter: str, quote: str) -> _csv.Reader:
    if quote:
        return csv.reader(file, delimiter=delimiter, quotechar=quote, strict=True)
    return csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)


def _explain_bytes(path: Path) -> None:
    """Raise the error of the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise PromptSetError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error


def _read_parquet(path: Path, column: str) -> Iterator[pa.StringArray]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            chosen = _choose_column(path, schema.names, column)
            kind = schema.field(chosen).type
            if not _is_text(kind):
                raise PromptSetError(f"{path}: column {chosen!r} must be text, it holds {kind}")
            batches = file.iter_batches(columns=[chosen])
            yield from _checked(path, chosen, (batch.column(0) for batch in batches))
    except _ARROW_ERRORS as error:
        raise PromptSetError(f"{path} is not a readable Parquet file: {error}") from error


def _is_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    return bool(types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain))


READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
