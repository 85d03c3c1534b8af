"""The prompt sets of the studies, made from the embedded held-out prompts: the same every time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.storage import replace_file

FOLDER = Path("runs/studies/prompts")
"""Where base.yaml looks for them."""
SMALL = 45
"""As many as the paper's small set has."""
LARGE_UNSEEN = 72
_SEED = 0


def write_prompts(folder: Path = FOLDER, source: Path = Path("models/prompts")) -> None:
    """small: 45 of the quickstart's training prompts; small_unseen: the quickstart's unseen ones, the same
    objects and backgrounds in other places and sizes. large: the held-out prompts of the grammar but 72,
    which are large_unseen.
    """
    easy, heldout = (_read(source / f"{name}.parquet") for name in ("quickstart_train", "heldout"))
    rows = np.random.default_rng(_SEED).permutation(len(heldout))
    _write(folder / "small.parquet", easy.take(_chosen(len(easy), SMALL)))
    _write(folder / "small_unseen.parquet", _read(source / "quickstart_unseen.parquet"))
    _write(folder / "large_unseen.parquet", heldout.take(np.sort(rows[:LARGE_UNSEEN])))
    _write(folder / "large.parquet", heldout.take(np.sort(rows[LARGE_UNSEEN:])))


def _chosen(count: int, wanted: int) -> np.ndarray:
    return np.sort(np.random.default_rng(_SEED).permutation(count)[:wanted])


def _read(path: Path) -> pa.ChunkedArray:
    return pq.read_table(path, columns=["prompt"])["prompt"]


def _write(path: Path, prompts: pa.ChunkedArray) -> None:
    packed = io.BytesIO()
    pq.write_table(pa.table({"prompt": prompts}), packed)
    # Not under the eyes of a cell of another process, which may read them now.
    if not path.exists() or path.read_bytes() != packed.getvalue():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, packed.getvalue())
