"""Prompt files of every format, for tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.config.training import PromptSource
from common.errors import PromptSetError
from driver.run.prompts import PromptSet, open_prompts

DATA = Path(__file__).parent / "data"


def opened(path: Path | str, column: str = "") -> PromptSet:
    return open_prompts(PromptSource(path=str(path), column=column))


def refusal(path: Path | str, column: str = "") -> str:
    with pytest.raises(PromptSetError) as caught:
        opened(path, column)
    return str(caught.value)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_as(path: Path, prompts: list[str], column: str = "prompt") -> Path:
    """The prompts in the format of the suffix, beside a column of numbers."""
    writers = {
        ".txt": lambda: path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8"),
        ".jsonl": lambda: path.write_text(
            "".join(json.dumps({"id": i, column: prompt}) + "\n" for i, prompt in enumerate(prompts))
        ),
        ".parquet": lambda: pq.write_table(pa.table({"id": range(len(prompts)), column: prompts}), path),
        ".csv": lambda: _write_csv(path, prompts, column),
        ".tsv": lambda: path.write_text(
            f"id\t{column}\n" + "".join(f"{i}\t{prompt}\n" for i, prompt in enumerate(prompts)),
            encoding="utf-8",
        ),
    }
    writers[path.suffix]()
    return path


def _write_csv(path: Path, prompts: list[str], column: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", column])
        rows.writerows(enumerate(prompts))
