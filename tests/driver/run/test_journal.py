"""The journal: what a killed run is recognised by."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.schema import Config
from common.errors import RunFolderError
from driver.run.folder import find_beginning, fixed_settings_digest
from driver.run.journal import JOURNAL_FILE, Journal, read_journal, write_journal
from tests.driver.run.test_folder import changed, save
from tests.tiny_config import make_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    found = make_config(Path("no/model"), tmp_path, {"run.epochs": 4})
    found.run_folder.mkdir(parents=True)
    return found


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_journal(tmp_path) == []
    for finished in (0, 5):
        journal = Journal("run", "tracked", "digest", finished)
        write_journal(tmp_path, journal)
        assert read_journal(tmp_path) == [journal]
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL_FILE]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"run_id": "run"}'])
def test_a_damaged_one_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / JOURNAL_FILE).write_text(text)
    with pytest.raises(RunFolderError, match="Delete it"):
        read_journal(tmp_path)


def test_a_run_without_a_checkpoint_goes_on_as_the_same_run(config: Config) -> None:
    write_journal(config.run_folder, Journal("abc", "tracked", fixed_settings_digest(config), 0))
    free = changed(changed(config, "run", epochs=9), "actors", count=5)
    for same in (config, free):
        beginning = find_beginning(same)
        assert (beginning.run_id, beginning.epoch, beginning.tracker_run) == ("abc", 0, "tracked")
        assert beginning.files == {}
    other = find_beginning(changed(config, "optimizer", learning_rate=0.5))
    assert other.run_id != "abc"
    assert other.tracker_run == ""


def test_a_run_killed_before_its_result_was_shown_is_not_finished(config: Config) -> None:
    save(config, 4)
    for finished in (0, 2):
        write_journal(config.run_folder, Journal("abc", "tracked", "any", finished))
        assert find_beginning(config).epoch == 4
    write_journal(config.run_folder, Journal("abc", "tracked", "any", 4))
    with pytest.raises(RunFolderError, match="finished run of 4 epochs"):
        find_beginning(config)
