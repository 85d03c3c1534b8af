"""Stage ``prompts``: write every prompt of the grammar with its attributes, split by combinations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.terminal import say
from models.scenes import Scene, all_scenes, is_heldout, prompt_of
from models.train_tiny.paths import PROMPTS_FOLDER

_ATTRIBUTES = tuple(field.name for field in fields(Scene))
SCHEMA = pa.schema(
    [("prompt", pa.string())]
    + [(name, pa.int8() if name == "count" else pa.string()) for name in _ATTRIBUTES]
)


def table_of(scenes: Sequence[Scene]) -> pa.Table:
    """One row a scene: its prompt and its attributes (null where its kind has none)."""
    columns: dict[str, list[object]] = {"prompt": [prompt_of(scene) for scene in scenes]}
    for name in _ATTRIBUTES:
        columns[name] = [getattr(scene, name) for scene in scenes]
    return pa.table(columns, schema=SCHEMA)


def write_prompts(scenes: Sequence[Scene], path: Path) -> None:
    """Write the scenes' prompts and attributes as a small Parquet file."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(
        table_of(scenes),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=list(_ATTRIBUTES),
        column_encoding={"prompt": "DELTA_BYTE_ARRAY"},
    )
    say(f"{path}: {len(scenes)} prompts, {path.stat().st_size} bytes")


def run() -> None:
    """Write ``models/prompts/train.parquet`` and ``models/prompts/heldout.parquet``."""
    split: dict[bool, list[Scene]] = {False: [], True: []}
    for scene in all_scenes():
        split[is_heldout(scene)].append(scene)
    for name, scenes in (("train", split[False]), ("heldout", split[True])):
        write_prompts(scenes, PROMPTS_FOLDER / f"{name}.parquet")
