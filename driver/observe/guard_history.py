"""What the guards remember, kept in the run folder so that a continued run judges by the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from common.errors import RunFolderError
from common.storage import replace_file
from driver.observe.alarms import FIRST_EPOCHS, EpochSigns

HISTORY_FILE = "guards.json"
KEPT_EPOCHS = 500


def save_history(run_folder: Path, history: Mapping[int, EpochSigns]) -> None:
    """Write it, whole or not at all. Raises RunFolderError where the folder cannot be written."""
    text = json.dumps({epoch: asdict(signs) for epoch, signs in history.items()}, indent=1)
    replace_file(run_folder / HISTORY_FILE, text.encode())


def load_history(run_folder: Path, epochs: int) -> dict[int, EpochSigns]:
    """What was known after so many epochs of the run in a folder. Raises RunFolderError."""
    path = run_folder / HISTORY_FILE
    if not epochs or not path.exists():
        return {}
    try:
        known = {int(epoch): EpochSigns(**fields) for epoch, fields in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}). Delete it to go on without it.") from error
    return {epoch: signs for epoch, signs in known.items() if epoch <= epochs}


def shortened(history: Mapping[int, EpochSigns], epoch: int) -> dict[int, EpochSigns]:
    """The epochs that can still be asked for: the first, and the last before `epoch`."""
    return {
        number: signs
        for number, signs in history.items()
        if number <= FIRST_EPOCHS or number > epoch - KEPT_EPOCHS
    }
