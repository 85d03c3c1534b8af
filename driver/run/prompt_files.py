"""Readers of prompt files, by suffix, and of data sets on the hub: prompts as Arrow text arrays, in blocks.

Prompts stay in Arrow memory: a million of them as Python texts would take 100 MB more.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import PromptSetError

PROMPT_COLUMNS = ("prompt", "text", "Prompt", "prompts", "Prompts", "caption")
LONGEST_PROMPT = 100_000
"""Characters. Longer ones are files without line ends, or another column; models read some hundreds."""
# Arrow's errors are ValueError, OSError and others; ArrowException covers the rest.
_UNREADABLE = (pa.ArrowException, OSError)
_BLOCK_ROWS = 10_000
_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
# Of a field; also of the other columns, which may hold whole articles.
_LONGEST_FIELD = 2**31 - 1
# What stands for a byte that is not UTF-8, and the character that other encodings are full of.
_NOT_TEXT = re.compile("[\udc80-\udcff\0]")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_OTHER_ENCODINGS = {b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# Objects as tuples of pairs show keys that come twice. Numbers are not looked at: int() refuses long ones.
_JSON = json.JSONDecoder(object_pairs_hook=tuple, parse_int=lambda _: 0)

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
    try:
        if path.stat().st_size == 0:
            raise PromptSetError(f"{path} is empty")
        yield from READERS[path.suffix.lower()](path, column)
    except _UNREADABLE as error:
        raise PromptSetError(f"{path} is not a readable {path.suffix} file: {error}") from error


def known_formats() -> str:
    """For an error: "known are .txt, ..."."""
    return f"known are {', '.join(READERS)}"


def _blocks(path: Path) -> Iterator[list[str]]:
    """The lines of a text with their ends, which are LF, CR or both: the one reader of all kinds of text.

    All blocks but the last have _BLOCK_ROWS lines. Raises PromptSetError naming the first line that is no
    UTF-8 text.
    """
    with path.open("rb") as file:
        start = file.read(4)
    for mark, encoding in _OTHER_ENCODINGS.items():
        if start.startswith(mark):
            raise PromptSetError(f"{path} is {encoding} text; save it as UTF-8")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        line = 1
        while block := list(islice(file, _BLOCK_ROWS)):
            if _NOT_TEXT.search("".join(block)):
                bad, found = next(
                    (n, found) for n, text in enumerate(block) if (found := _NOT_TEXT.search(text))
                )
                what = f"byte 0x{ord(found[0]) & 0xFF:02x}" if ord(found[0]) else "a NUL character"
                raise PromptSetError(f"{path}, line {line + bad}: not UTF-8 text ({what}); save it as UTF-8")
            yield block
            line += len(block)


def _lines(path: Path) -> Iterator[str]:
    return chain.from_iterable(_blocks(path))


def _read_text(path: Path, column: str) -> Iterator[pa.StringArray]:
    if column:
        raise PromptSetError(f"{path}: column is {column!r}, but a .txt file has no columns; leave it empty")
    line = 1
    for block in _blocks(path):
        texts = pc.utf8_trim_whitespace(pa.array(block, pa.string()))
        length = pc.utf8_length(texts)
        bad = pc.index(pc.less_equal(length, LONGEST_PROMPT), False).as_py()
        if bad >= 0:
            _prompt(f"{path}, line {line + bad}: the prompt", texts[bad].as_py())
        yield texts.filter(pc.greater(length, 0))
        line += len(block)


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
            length = pc.fill_null(pc.utf8_length(texts), 0)
            sound = pc.and_(pc.greater(length, 0), pc.less_equal(length, LONGEST_PROMPT))
            sound = pc.and_not(sound, pc.fill_null(pc.match_substring(texts, "\0"), False))
            bad = pc.index(sound, False).as_py()
            if bad >= 0:
                _prompt(f"{path}, row {row + bad}: the prompt (column {chosen!r})", texts[bad].as_py())
            row += len(texts)
            yield texts


def _jsonl_rows(path: Path, column: str) -> Iterator[Row]:
    chosen = ""
    for line, text in enumerate(map(str.strip, _lines(path)), start=1):
        if not text:
            continue
        try:
            value = _JSON.decode(text)
        except json.JSONDecodeError as error:
            raise PromptSetError(
                f"{path}, line {line}, column {error.colno}: not valid JSON: {error.msg}"
            ) from error
        except RecursionError as error:
            raise PromptSetError(f"{path}, line {line}: nested too deep") from error
        if not isinstance(value, tuple):
            raise PromptSetError(f'{path}, line {line}: must be an object such as {{"prompt": "a cat"}}')
        names = [name for name, _ in value]
        chosen = chosen or _choose_column(path, names, column)
        if names.count(chosen) > 1:
            raise PromptSetError(
                f"{path}, line {line}: the key {chosen!r} is there {names.count(chosen)} times"
            )
        yield line, dict(value).get(chosen)


def _table_rows(path: Path, column: str, delimiter: str, quoting: Literal[0, 3]) -> Iterator[Row]:
    """quoting: csv's."""
    hint = "close every quote, and put a field that holds a comma in quotes"
    hint = hint if quoting == csv.QUOTE_MINIMAL else "separate fields by tabs"
    csv.field_size_limit(_LONGEST_FIELD)
    table = csv.reader(_lines(path), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    line = 1
    try:
        for row in table:
            if not header:
                # Lines without fields before the header.
                if not any(field.strip() for field in row):
                    line = table.line_num + 1
                    continue
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
    wanted = (column,) if column else PROMPT_COLUMNS
    found = [name for name in wanted if name in names]
    if not found:
        if padded := [name for name in names if name.strip() in wanted]:
            raise PromptSetError(
                f"{path}: the column {padded[0]!r} has blanks around its name; take them out"
            )
        if other := [sign for sign in (";", "\t") if len(names) == 1 and sign in names[0]]:
            raise PromptSetError(
                f"{path} has {other[0]!r} between its columns; give it commas, or tabs and the suffix .tsv"
            )
        missing = f"no column {column!r}" if column else f"none of the columns {', '.join(PROMPT_COLUMNS)}"
        raise PromptSetError(f"{path} has {missing}; set column to one of its own: {', '.join(names)}")
    if names.count(found[0]) > 1:
        raise PromptSetError(f"{path} has {names.count(found[0])} columns named {found[0]!r}; rename one")
    return found[0]


def _from_rows(read: Callable[[Path, str], Iterator[Row]], path: Path, column: str) -> Iterator[pa.Array]:
    prompts = (_prompt(f"{path}, line {line}: the prompt", value) for line, value in read(path, column))
    while block := list(islice(prompts, _BLOCK_ROWS)):
        yield pa.array(block, pa.string())


def _prompt(which: str, value: Any) -> str:
    """The prompt without surrounding whitespace. which: names it in errors. Raises PromptSetError."""
    if value is None:
        raise PromptSetError(f"{which} is missing")
    if not isinstance(value, str):
        kind = "an object" if isinstance(value, tuple) else type(value).__name__
        raise PromptSetError(f"{which} must be text, got {kind}")
    prompt = value.strip()
    if not prompt:
        raise PromptSetError(f"{which} is blank")
    if len(prompt) > LONGEST_PROMPT:
        raise PromptSetError(
            f"{which} has {len(prompt)} characters, allowed are {LONGEST_PROMPT}; are line ends missing, or "
            "is it another column?"
        )
    if "\0" in prompt or _HALF_CHARACTER.search(prompt):
        raise PromptSetError(f"{which} holds a NUL or half a character (a lone surrogate), which is no text")
    return prompt


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
