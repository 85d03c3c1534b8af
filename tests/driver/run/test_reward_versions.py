"""The record of versions: what it holds, and that a continued run goes on with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import RunFolderError
from common.trajectory import ScorerStamp
from driver.run.reward_versions import VERSIONS_FILE, VersionLog, VersionRecord, load_versions


def stamps(clip: str, size: str = "1") -> tuple[ScorerStamp, ...]:
    return ScorerStamp("clip", clip, "digest"), ScorerStamp("size", size, "")


@pytest.fixture
def log() -> VersionLog:
    """Version a in epochs 1 and 2, version b from the second group of epoch 3 on."""
    log = VersionLog()
    for epoch in (1, 2):
        for group in range(3):
            assert log.scored(epoch, group, stamps("a")) == []
    log.scored(3, 0, stamps("a"))
    (swap,) = log.scored(3, 1, stamps("b"))
    assert (swap.name, swap.index) == ("clip", 2)
    return log


def test_first_versions_and_swaps_are_recorded_where_they_begin(log: VersionLog) -> None:
    assert log.records == (
        VersionRecord(1, 0, "clip", 1, "a", "digest"),
        VersionRecord(1, 0, "size", 1, "1", ""),
        VersionRecord(3, 1, "clip", 2, "b", "digest"),
    )
    assert log.swaps == log.records[2:]
    assert log.indices() == {"clip": 2, "size": 1}
    assert json.loads(log.to_json())[2]["version"] == "b"


def test_a_continued_run_knows_what_was_before_its_checkpoint(log: VersionLog, tmp_path: Path) -> None:
    log.save(tmp_path)
    assert load_versions(tmp_path, 3) == list(log.records)
    assert load_versions(tmp_path, 0) == []
    again = VersionLog(load_versions(tmp_path, 2))
    assert again.indices() == {"clip": 1, "size": 1}
    (swap,) = again.scored(3, 0, stamps("b"))
    assert (swap.index, swap.before.version) == (2, "a")


def test_a_swap_while_the_run_was_stopped_is_noticed(log: VersionLog, tmp_path: Path) -> None:
    log.save(tmp_path)
    (swap,) = VersionLog(load_versions(tmp_path, 3)).scored(4, 0, stamps("c"))
    assert (swap.index, swap.before.version, swap.after.version) == (3, "b", "c")


@pytest.mark.parametrize("text", ["{", "[1]", '[{"epoch": 1}]', "{}"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / VERSIONS_FILE).write_text(text)
    with pytest.raises(RunFolderError, match=r"reward_versions\.json.*Delete it"):
        load_versions(tmp_path, 1)
