"""The run's journal: what the same command needs to go on with a run that was killed, checkpoint or not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import RunFolderError
from common.storage import replace_file

JOURNAL_FILE = "journal.json"


@dataclass(frozen=True)
class Journal:
    """Written when the tracker's run is opened, and at the end.

    config_digest: of the settings that must not differ when the run goes on. finished: the epochs of a run
    whose result has been shown; 0 before. forked_from: the checkpoint that the run began with, empty where it
    began with the pretrained model.
    """

    run_id: str
    tracker_run: str
    config_digest: str
    finished: int
    forked_from: str = ""


def settings_digest(settings: str) -> str:
    """SHA-256 (hex) of settings as text."""
    return hashlib.sha256(settings.encode()).hexdigest()


def write_journal(run_folder: Path, journal: Journal) -> None:
    """Write it, whole or not at all. Raises RunFolderError where that fails."""
    text = json.dumps(asdict(journal), indent=1) + "\n"
    replace_file(run_folder / JOURNAL_FILE, text.encode())


def read_journal(run_folder: Path) -> list[Journal]:
    """The journal of the run in a folder; none where there is no run. Raises RunFolderError."""
    path = run_folder / JOURNAL_FILE
    try:
        return [Journal(**json.loads(path.read_text()))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}). Delete it: a run with checkpoints goes on without it."
        ) from error
