"""Result pages and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.machine import Machine
from benchmarks.report import Result, raw_of, verdict_of
from benchmarks.timing import Comparison, Times


def _result() -> Result:
    two_s, one_s = Times((2.0, 2.0), (0.2, 0.2)), Times((1.0, 1.0), (0.1, 0.1))
    slow = Comparison("slow one", 8, "images", ours=two_s, bare=one_s, target=0.9)
    quick = Comparison("quick one", 8, "images", ours=one_s, bare=one_s, target=0.9)
    return Result(
        name="example",
        command="python -m benchmarks.example",
        settings={"batch": 8},
        machine=Machine.here(),
        verdicts=(verdict_of(slow), verdict_of(quick)),
        figures={"besides": "3.0 MB"},
        raw={"slow one": raw_of(slow)},
    )


def test_page_says_which_targets_are_not_met() -> None:
    rows = [line for line in _result().markdown().splitlines() if " one |" in line]
    assert ["| NO |" in row for row in rows] == [True, False]
    assert "**0.500**" in rows[0]
    assert "4 against 8 images/s" in rows[0]


def test_page_names_command_machine_and_settings() -> None:
    page = _result().markdown()
    for part in ("`python -m benchmarks.example`", "torch threads", "batch 8", "| besides | 3.0 MB |"):
        assert part in page


def test_files_hold_every_measured_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = _result()
    result.publish(tmp_path / "results")
    content = json.loads((tmp_path / "results" / "example.json").read_text())
    assert content["raw"]["slow one"] == {
        "items": 8,
        "ours_s": [2.0, 2.0],
        "bare_s": [1.0, 1.0],
        "ours_cpu_s": [0.2, 0.2],
        "bare_cpu_s": [0.1, 0.1],
    }
    assert [one["met"] for one in content["verdicts"]] == [False, True]
    assert (tmp_path / "results" / "example.md").read_text() == result.markdown()
    assert "slow one" in capsys.readouterr().out
