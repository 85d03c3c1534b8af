"""The quickstart's prompts: combinations that the models never saw, split by prompt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from models.scenes import all_scenes, is_heldout, prompt_of
from models.train_tiny.paths import PROMPTS_FOLDER
from models.train_tiny.quickstart import CHOSEN


def rows(name: str) -> list[dict[str, Any]]:
    return pq.read_table(PROMPTS_FOLDER / f"quickstart_{name}.parquet").to_pylist()


def test_the_repository_stays_small() -> None:
    """Every job uploads the embedded models (docs/cluster.md)."""
    files = [file for file in Path("models").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) <= 28_500_000


def test_no_model_was_trained_on_any_of_the_shipped_prompts() -> None:
    heldout = {prompt_of(scene): is_heldout(scene) for scene in all_scenes()}
    assert all(heldout[row["prompt"]] for row in [*rows("train"), *rows("unseen")])


def test_unseen_prompts_are_a_third_of_each_objects_and_never_trained_on() -> None:
    train, unseen = rows("train"), rows("unseen")
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in unseen}
    counts = [Counter(row["object1"] for row in part) for part in (train, unseen)]
    assert [len(count) for count in counts] == [CHOSEN, CHOSEN]
    assert all(counts[0][name] == 2 * counts[1][name] for name in counts[0])
