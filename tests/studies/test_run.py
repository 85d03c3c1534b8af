"""The command: what is done is not done again, and what others have in work is left to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.config.load import config_to_yaml
from studies import catalogue, run
from studies.catalogue import Study
from studies.results import read_rows
from studies.run import claimed, is_done, main, run_cell
from tests.studies.test_cell import REWARDS
from tests.tiny_config import make_config

STUDY = Study("s", "?", {"plain": {"run.epochs": 1}, "other": {"run.epochs": 2}}, (0,), grids=True)


@pytest.fixture
def _tiny_base(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(config_to_yaml(make_config(tiny_pipeline, tmp_path, REWARDS)))
    monkeypatch.setattr(catalogue, "BASE", base)


@pytest.mark.usefixtures("_tiny_base")
def test_a_cell_that_is_through_has_rows_and_a_grid_and_is_done(tmp_path: Path) -> None:
    assert not is_done(STUDY, "plain", 0, tmp_path)
    run_cell(STUDY, "plain", 0, tmp_path)
    rows = read_rows("s", tmp_path)
    assert [(row.cell, row.seed, row.epoch, row.alarm) for row in rows] == [
        ("plain", 0, 0, False),
        ("plain", 0, 1, False),
    ]
    assert (tmp_path / "s_plain.png").stat().st_size > 1000
    assert is_done(STUDY, "plain", 0, tmp_path)
    assert not is_done(STUDY, "plain", 1, tmp_path)
    assert not is_done(STUDY, "other", 0, tmp_path)
    catalogue.BASE.write_text(catalogue.BASE.read_text() + "\n")
    assert not is_done(STUDY, "plain", 0, tmp_path)


@pytest.mark.usefixtures("_tiny_base")
def test_the_command_leaves_what_is_done_and_runs_it_again_into_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(run, "STUDIES", {"s": STUDY})
    monkeypatch.setattr(run, "write_prompts", lambda: None)
    first, again = tmp_path / "first", tmp_path / "again"
    for folder in (first, first, again):
        assert main(["s", "--cells", "plain", "--results", str(folder)]) == 0
    assert capsys.readouterr().out.count("done already") == 1
    texts = [[repr(replace(row, seconds=0.0)) for row in read_rows("s", folder)] for folder in (first, again)]
    assert texts[0] == texts[1]


def test_a_cell_belongs_to_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LOCKS", tmp_path)
    with claimed("cell") as first, claimed("cell") as second, claimed("other") as third:
        assert (first, second, third) == (True, False, True)
    with claimed("cell") as again:
        assert again
