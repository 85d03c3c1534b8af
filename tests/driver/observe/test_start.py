"""What a start waits for reaches the display and status.json, each thing once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from driver.observe.start import StartReport
from driver.observe.status import StatusFile, read_status
from tests.driver.observe.test_observer import KeptDisplay
from tests.tiny_config import make_config


def test_each_wait_is_told_once_and_kept_as_soon_as_there_is_a_file(tmp_path: Path) -> None:
    config = make_config(Path("no/model"), tmp_path)
    config.run_folder.mkdir(parents=True)
    display: Any = KeptDisplay()
    start = StartReport(display, epochs=9)
    for what in ("the prompts", "the model", "the model"):
        start.waits_for(what)
    start.keep_in(StatusFile(config, "abc"), finished=3)
    start.waits_for("Ray to start")
    assert [state.waits_for for state in display.states] == ["the prompts", "the model", "Ray to start"]
    found = read_status(config.run_folder)
    assert (found.phase, found.waits_for, found.epoch) == ("starting", "Ray to start", 3)
