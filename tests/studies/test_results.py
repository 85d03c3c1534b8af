"""Results on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from studies.results import Row, add_rows, read_rows, twin_rows


def row(cell: str = "prdp", seed: int = 0, epoch: int = 0, unseen: float = 0.5, **values: float) -> Row:
    """A row of study "s"."""
    queries = {"queries": 10 * epoch, "passes": 100 * epoch, **values}
    return Row(
        study="s",
        cell=cell,
        seed=seed,
        settings="d",
        epoch=epoch,
        queries=int(queries["queries"]),
        passes=int(queries["passes"]),
        seen_proxy=unseen,
        seen_gold=values.get("gold", unseen),
        unseen_proxy=unseen,
        unseen_gold=values.get("gold", unseen),
        gradient_norm=float("nan"),
        log_ratio=1.5,
        clipped=float("nan"),
        skipped=0,
        alarm=False,
        seconds=2.0 * epoch,
        weights="w",
    )


def test_a_cell_that_is_run_again_takes_the_place_of_its_rows(tmp_path: Path) -> None:
    assert read_rows("s", tmp_path) == []
    first, other = [row(epoch=0), row(epoch=4)], [row("ddpo", 1)]
    add_rows(first, tmp_path)
    add_rows(other, tmp_path)
    again = [replace(first[0], settings="e")]
    add_rows(again, tmp_path)
    found = read_rows("s", tmp_path)
    assert [(one.cell, one.seed, one.settings) for one in found] == [("ddpo", 1, "d"), ("prdp", 0, "e")]
    assert np.isnan(found[0].gradient_norm)
    assert replace(found[1], gradient_norm=0.0, clipped=0.0) == replace(
        again[0], gradient_norm=0.0, clipped=0.0
    )


def test_a_run_of_the_same_settings_in_another_study_is_taken_for_nothing(tmp_path: Path) -> None:
    add_rows([row(seed=1, epoch=0), row(seed=1, epoch=4)], tmp_path)
    add_rows([replace(row("old", 2), alarm=None)], tmp_path)
    taken = twin_rows("other", "cell", 1, "d", tmp_path)
    assert [(one.study, one.cell, one.epoch, one.seconds) for one in taken] == [
        ("other", "cell", 0, 0.0),
        ("other", "cell", 4, 0.0),
    ]
    for study, seed, settings in (("s", 1, "d"), ("other", 2, "d"), ("other", 1, "e")):
        assert twin_rows(study, "cell", seed, settings, tmp_path) == []
