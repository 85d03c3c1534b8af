"""The run's folder: who may write into it, and whether there is a run to go on with.

The journal is what the same command needs to go on with a run that was killed, checkpoint or not.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from common.config.load import config_from_yaml_text
from common.config.schema import Config
from common.errors import RunFolderError
from common.records import read_record
from common.storage import check_held, held, replace_file
from driver.run.changes import find_changes, unfit
from driver.run.checkpoints import FOLDER, Checkpoint, Checkpoints, list_checkpoints

LOCK_FILE = ".lock"
JOURNAL_FILE = "journal.json"


@dataclass(frozen=True)
class Journal:
    """Written when the tracker's run is opened, and at the end.

    config: of the run, as YAML. finished: the epochs of a run whose result has been shown; 0 before.
    forked_from: the checkpoint that the run began with, empty where it began with the pretrained model.
    inputs: see RunState.
    """

    run_id: str
    tracker_run: str
    config: str
    finished: int
    forked_from: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)


def write_journal(run_folder: Path, journal: Journal) -> None:
    """Write it, whole or not at all. Raises RunFolderError where that fails."""
    replace_file(run_folder / JOURNAL_FILE, f"{json.dumps(asdict(journal), indent=1)}\n".encode())


def read_journal(run_folder: Path) -> Journal | None:
    """The journal of the run in a folder, if there is a run. Raises RunFolderError."""
    mend = "Delete it: a run with checkpoints goes on without it."
    return read_record(run_folder / JOURNAL_FILE, Journal, mend)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins.

    checkpoint: to go on from; None for a new run. notes: what a person should know of it. tracker_run: the
    tracker's run to go on with; empty for a new one. inputs, changes: see RunState; accepted: how many of the
    changes, the last ones, are made now.
    """

    run_id: str
    epoch: int
    checkpoint: Checkpoint | None
    notes: tuple[str, ...] = ()
    tracker_run: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[tuple[int, str], ...] = ()
    accepted: int = 0

    @property
    def files(self) -> dict[str, bytes]:
        """The learner's files to go on from; none for a new run."""
        return self.checkpoint.files if self.checkpoint else {}

    @property
    def history(self) -> Mapping[str, tuple[float, ...]]:
        """What the objective remembers of earlier epochs, as JSON holds it; nothing for a new run."""
        return self.checkpoint.state.history if self.checkpoint else {}

    @property
    def forked_from(self) -> str:
        """The checkpoint of another run that this one began with; empty for a run of its own."""
        return self.checkpoint.state.forked_from if self.checkpoint else ""


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process. Raises RunFolderError where it is in use or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunFolderError(
            f"The run folder {folder} cannot be written ({error}). Set run.folder elsewhere."
        ) from error
    try:
        try:
            # The lock dies with the process, so a killed run leaves none behind.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 100, 0).decode(errors="replace").strip()
            raise RunFolderError(
                f"Another process ({holder}) is training in {folder}. Wait for it, or choose another "
                "run.name."
            ) from error
        with held(folder / LOCK_FILE, handle):
            # Somebody may have deleted it before it was locked.
            check_held(folder)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
            yield
    finally:
        os.close(handle)


def find_beginning(
    config: Config, inputs: Mapping[str, str] = MappingProxyType({}), accept_changes: bool = False
) -> ResumePoint:
    """A new run, or the continuation of the one in the folder.

    inputs: see RunState. accept_changes: go on where settings or inputs are other ones than the run's, and
    record that. Raises RunFolderError where the folder holds a finished run, one of another configuration or
    of other inputs, or a checkpoint of another run; CheckpointError where its checkpoints are damaged, or can
    be neither read nor written.
    """
    checkpoints = Checkpoints.of(config)
    checkpoints.check_writable()
    newest, journal = checkpoints.newest(), read_journal(config.run_folder)
    if newest.checkpoint is None:
        check_none_elsewhere(config, checkpoints)
        return _without_checkpoint(config, inputs, journal, newest.notes)
    state, notes = newest.checkpoint.state, newest.notes
    _check_one_run(config, checkpoints, journal)
    changes = _changes_since(newest.checkpoint, config, inputs, accept_changes)
    shown = journal is None or journal.finished >= config.run.epochs
    if state.epoch > config.run.epochs or (state.epoch == config.run.epochs and shown):
        raise RunFolderError(
            f"{config.run_folder} holds a finished run of {state.epoch} epochs. To go on, raise run.epochs "
            f"(run.epochs={2 * state.epoch}); to start anew, choose another run.name or delete the folder."
        )
    if state.forked_from and state.epoch == 0:
        notes = (*notes, f"This run begins with {state.forked_from}.")
    # Of a run that was killed before it wrote a checkpoint of its own, only the journal knows it.
    opened = journal.tracker_run if journal and journal.run_id == state.run_id else ""
    every = (*state.changes, *((state.epoch, text) for text in changes))
    told = (f"Changed from epoch {epoch} on: {text}" for epoch, text in every if epoch == state.epoch)
    return ResumePoint(
        run_id=state.run_id,
        epoch=state.epoch,
        checkpoint=newest.checkpoint,
        notes=(*notes, *told),
        tracker_run=state.tracker_run or opened,
        inputs={**state.inputs, **inputs},
        changes=every,
        accepted=len(changes),
    )


def _check_one_run(config: Config, checkpoints: Checkpoints, journal: Journal | None) -> None:
    """Raise RunFolderError where a checkpoint is of another run than the journal, or than the others."""
    found = checkpoints.run_ids()
    own = journal.run_id if journal else found[min(found)]
    foreign = [
        f"{checkpoints.where(epoch)} is of run {run_id}" for epoch, run_id in found.items() if run_id != own
    ]
    if foreign:
        raise RunFolderError(
            f"{config.run_folder} is of run {own}, but:\n  "
            + "\n  ".join(foreign)
            + "\nTake it away to go on with this run. To begin a new run with its weights, give --fork and "
            "that place, and another run.name."
        )


def _changes_since(
    checkpoint: Checkpoint, config: Config, inputs: Mapping[str, str], accept_changes: bool
) -> list[str]:
    """What the run depends on and is another one now; see find_changes. Raises RunFolderError where that is
    not accepted, or keeps the policy from taking over the checkpoint."""
    before = checkpoint.config_yaml, checkpoint.state.inputs
    changes = find_changes(*before, config, inputs)
    hindrances = unfit(config_from_yaml_text(before[0], f"the configuration of {checkpoint.place}"), config)
    if hindrances or (changes and not accept_changes):
        mend = "Choose another run.name, or set these as they were to go on with that run."
        if hindrances:
            keys = ", ".join(line.split(":")[0] for line in hindrances)
            mend += f" --accept-changes is no way out: the weights belong to {keys}."
        else:
            mend += (
                f" Or give --accept-changes: the run goes on from epoch {checkpoint.state.epoch} with them, "
                "and its record and its training curve say so."
            )
        raise RunFolderError(
            f"{config.run_folder} holds a run of another configuration or of other inputs (the run's against "
            "yours):\n  " + "\n  ".join(changes) + f"\n{mend}"
        )
    return changes


def _without_checkpoint(
    config: Config, inputs: Mapping[str, str], journal: Journal | None, notes: tuple[str, ...]
) -> ResumePoint:
    """A new run, or the one in the folder that was ended before its first checkpoint.

    Raises RunFolderError for a fork: it would begin with the pretrained model in place of its checkpoint.
    """
    if journal is not None and journal.forked_from:
        raise RunFolderError(
            f"{config.run_folder} holds a run that was forked from {journal.forked_from}, and no "
            f"checkpoint of it is in {Checkpoints.of(config).place}. Bring one back from a copy; or "
            "begin another fork: choose another run.name, or delete the folder, and give --fork."
        )
    if journal is not None:
        changes = find_changes(journal.config, journal.inputs, config, inputs)
        if not changes:
            note = "This run has no checkpoint yet: it begins again, as the same run."
            return ResumePoint(
                journal.run_id, 0, None, (*notes, note), journal.tracker_run, {**journal.inputs, **inputs}
            )
        why = f"which has no checkpoint and depends on something else: {'; '.join(changes)}"
        notes = (*notes, f"A new run takes the place of run {journal.run_id}, {why}.")
    return ResumePoint(secrets.token_hex(6), 0, None, notes, inputs=dict(inputs))


def check_none_elsewhere(config: Config, checkpoints: Checkpoints) -> None:
    """Raise RunFolderError where checkpoints lie in the run folder, but checkpoint.folder is another."""
    if config.checkpoint.folder and list_checkpoints(config.run_folder):
        inside = config.run_folder / FOLDER
        raise RunFolderError(
            f"checkpoint.folder has no checkpoint of this run, but {inside} has. To go on with it, leave "
            f"checkpoint.folder empty, or copy what is in {inside} to {checkpoints.place}; to begin anew, "
            "choose another run.name."
        )
