"""The run's folder: who may write into it, and whether there is a run to go on with."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.config.load import config_differences, config_from_yaml_text
from common.config.schema import Config
from common.errors import RunFolderError
from driver.report.tracker import flat_params
from driver.run.checkpoints import FOLDER, Checkpoint, Checkpoints, RunState, list_checkpoints
from driver.run.journal import read_journal, settings_digest

LOCK_FILE = ".lock"

# Settings that may differ when a run goes on: they change neither the data nor the updates of an epoch.
FREE_SECTIONS = (
    "actors.",
    "checkpoint.",
    "display.",
    "evaluation.every_epochs",
    "guards.",
    "ray.",
    "reward_service.",
    "tracker.",
)
FREE_SETTINGS = ("run.epochs", "run.folder", "learner.", "model.device", "data.record")


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins.

    checkpoint: none for a new run, one to go on from. notes: what a person should know of it.
    open_tracker_run: of a run that was killed before it wrote a checkpoint.
    """

    run_id: str
    epoch: int
    checkpoint: tuple[Checkpoint, ...]
    notes: tuple[str, ...] = ()
    open_tracker_run: str = ""

    @property
    def states(self) -> tuple[RunState, ...]:
        """Where the checkpoint says that the run stands; none for a new run."""
        return tuple(checkpoint.state for checkpoint in self.checkpoint)

    @property
    def files(self) -> dict[str, bytes]:
        """The learner's files to go on from; none for a new run."""
        return self.checkpoint[0].files if self.checkpoint else {}

    @property
    def tracker_run(self) -> str:
        """The tracker's run to go on with; empty for a new one."""
        known = self.checkpoint[0].state.tracker_run if self.checkpoint else ""
        return known or self.open_tracker_run

    @property
    def forked_from(self) -> str:
        """The checkpoint of another run that this one began with; empty for a run of its own."""
        return self.checkpoint[0].state.forked_from if self.checkpoint else ""


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
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        os.close(handle)


def find_beginning(config: Config) -> ResumePoint:
    """A new run, or the continuation of the one in the folder.

    Raises RunFolderError where the folder holds a finished run or one of another configuration,
    CheckpointError where its checkpoints are damaged, or can be neither read nor written.
    """
    checkpoints = Checkpoints.of(config)
    checkpoints.check_writable()
    found = checkpoints.newest()
    if not found.checkpoints:
        check_none_elsewhere(config, checkpoints)
        return _without_checkpoint(config, found.notes)
    (checkpoint,) = found.checkpoints
    earlier = config_from_yaml_text(checkpoint.config_yaml, f"the configuration of {checkpoint.place}")
    differences = [
        line
        for line in config_differences(earlier, config)
        if not line.startswith((*FREE_SECTIONS, *FREE_SETTINGS))
    ]
    if differences:
        raise RunFolderError(
            f"{config.run_folder} holds a run of another configuration (its value against yours):\n  "
            + "\n  ".join(differences)
            + "\nChoose another run.name, or set these as they were to go on with that run."
        )
    epoch = checkpoint.state.epoch
    shown = all(journal.finished >= config.run.epochs for journal in read_journal(config.run_folder))
    if epoch > config.run.epochs or (epoch == config.run.epochs and shown):
        raise RunFolderError(
            f"{config.run_folder} holds a finished run of {epoch} epochs. To go on, raise run.epochs "
            f"(run.epochs={2 * epoch}); to start anew, choose another run.name or delete the folder."
        )
    notes = found.notes
    if checkpoint.state.forked_from and epoch == 0:
        notes = (*notes, f"This run begins with {checkpoint.state.forked_from}.")
    run_id = checkpoint.state.run_id
    opened = [own.tracker_run for own in read_journal(config.run_folder) if own.run_id == run_id]
    return ResumePoint(run_id, epoch, (checkpoint,), notes, "".join(opened))


def _without_checkpoint(config: Config, notes: tuple[str, ...]) -> ResumePoint:
    """A new run, or the one in the folder that was ended before its first checkpoint.

    Raises RunFolderError for a fork: it would begin with the pretrained model in place of its checkpoint.
    """
    for journal in read_journal(config.run_folder):
        if journal.forked_from:
            raise RunFolderError(
                f"{config.run_folder} holds a run that was forked from {journal.forked_from}, and no "
                f"checkpoint of it is in {Checkpoints.of(config).place}. Bring one back from a copy; or "
                "begin another fork: choose another run.name, or delete the folder, and give --fork."
            )
        if journal.config_digest == fixed_settings_digest(config):
            note = "This run has no checkpoint yet: it begins again, as the same run."
            return ResumePoint(journal.run_id, 0, (), (*notes, note), journal.tracker_run)
    return ResumePoint(run_id=secrets.token_hex(6), epoch=0, checkpoint=(), notes=notes)


def fixed_settings_digest(config: Config) -> str:
    """Digest of the settings that must be as they were when a run goes on."""
    tree = flat_params(config.model_dump(mode="json"))
    fixed = {key: text for key, text in tree.items() if not key.startswith((*FREE_SECTIONS, *FREE_SETTINGS))}
    return settings_digest(json.dumps(fixed, sort_keys=True))


def check_none_elsewhere(config: Config, checkpoints: Checkpoints) -> None:
    """Raise RunFolderError where checkpoints lie in the run folder, but checkpoint.folder is another."""
    if config.checkpoint.folder and list_checkpoints(config.run_folder):
        own = config.run_folder / FOLDER
        raise RunFolderError(
            f"checkpoint.folder has no checkpoint of this run, but {own} has. To go on with it, leave "
            f"checkpoint.folder empty, or copy what is in {own} to {checkpoints.place}; to begin anew, "
            "choose another run.name."
        )
