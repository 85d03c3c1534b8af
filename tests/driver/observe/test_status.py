"""status.json: what it says while the run goes on, and after. (Processes: see the fault tests.)"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import driver.observe.status
from common.errors import RunFolderError
from driver.observe.display import DisplayState
from driver.observe.status import STATUS_FILE, StatusFile, epochs_reached, read_status
from driver.run.folder import claim
from driver.stop import StopRequested
from tests.tiny_config import make_config


def test_it_says_how_the_run_ended(tmp_path: Path) -> None:
    config = make_config(Path("no/model"), tmp_path)
    config.run_folder.mkdir(parents=True)
    status = StatusFile(config, "abc")
    assert read_status(config.run_folder) is None
    with status.until_the_end():
        pass
    found = read_status(config.run_folder)
    assert (found.run_id, found.pid, found.phase, found.epochs) == ("abc", os.getpid(), "finished", 2)
    for error, how in ((StopRequested, "stopped"), (KeyboardInterrupt, "stopped"), (ValueError, "failed")):
        with pytest.raises(error), status.until_the_end():
            raise error
        assert read_status(config.run_folder).phase == how


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    config = make_config(Path("no/model"), tmp_path)
    config.run_folder.parent.mkdir()
    config.run_folder.write_text("no folder")
    with StatusFile(config, "abc").until_the_end():
        pass
    assert config.run_folder.read_text() == "no folder"


def test_a_folder_that_is_gone_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver.observe.status, "living_processes", lambda _: ())
    config = make_config(Path("no/model"), tmp_path)
    status = StatusFile(config, "abc")
    with claim(config.run_folder):
        shutil.rmtree(config.run_folder)
        with pytest.raises(RunFolderError, match=str(config.run_folder)), status.until_the_end():
            status.write(DisplayState(epoch=1, epochs=9))
        assert not config.run_folder.exists()


def test_the_epochs_of_an_earlier_process_are_those_of_the_same_run(tmp_path: Path) -> None:
    assert epochs_reached(tmp_path, "abc") == 0
    fields = '"pid": 1, "host": "h", "epochs": 9, "phase": "sampling", "since": 0.0, "processes": []'
    (tmp_path / STATUS_FILE).write_text('{"run_id": "abc", "epoch": 4, "reached": 7, ' + fields + "}")
    assert epochs_reached(tmp_path, "abc") == 7
    assert epochs_reached(tmp_path, "another") == 0
    for damaged in ("{", "", "[]", '{"run_id": "abc", "epoch": 4, "reached": "7", ' + fields + "}"):
        (tmp_path / STATUS_FILE).write_text(damaged)
        assert epochs_reached(tmp_path, "abc") == 0
        with pytest.raises(RunFolderError, match=STATUS_FILE):
            read_status(tmp_path)


def test_epochs_that_are_done_again_are_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver.observe.status, "living_processes", lambda _: ())
    config = make_config(Path("no/model"), tmp_path)
    config.run_folder.mkdir(parents=True)
    status = StatusFile(config, "abc", 7)
    for epoch, reached in ((4, 7), (8, 8)):
        status.write(DisplayState(epoch=epoch, epochs=9))
        assert read_status(config.run_folder).epoch == epoch
        assert epochs_reached(config.run_folder, "abc") == reached
