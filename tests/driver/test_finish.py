"""The end of a run: what cannot be shown is said, and everything else is there."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from driver.finish import show_result
from tests.driver.observe.test_observer import Watched


@pytest.fixture
def run(tmp_path: Path) -> Watched:
    """Two epochs through, without a checkpoint to log."""
    run = Watched(tmp_path, 0)
    for epoch in (1, 2):
        run.run_epoch(epoch, 0.5)
    return run


def result_of(run: Watched, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=200)
    show_result(run.config, run.observer, run.tracker, console)
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("part", ["write_plots", "describe_run", "change_table", "config_to_yaml"])
def test_whatever_fails_to_show_the_rest_is_shown(
    run: Watched, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("NO " + part)

    monkeypatch.setattr(f"driver.finish.{part}", fail)
    shown = result_of(run)
    assert "NO " + part in shown
    assert "sample.py" in shown
    assert "unseen" in (run.config.run_folder / "result.md").read_text()


def test_a_terminal_that_cannot_write_the_result_ends_nothing(run: Watched) -> None:
    shown = result_of(run, "ascii")
    assert "UnicodeEncodeError" in shown
    assert "train.py" in shown
    assert "±" in (run.config.run_folder / "result.md").read_text()
