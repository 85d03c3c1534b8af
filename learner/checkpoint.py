"""Checkpoints on disk: a folder that is whole or not there, with the digest of every file.

<run folder>/checkpoints/epoch_000012/
    run.json            epoch, prompt cursor, run id, tracker run, digest of every file
    config.yaml         the whole configuration
    learner.json, trainable.safetensors, optimizer.safetensors, ema.safetensors      what an exact
    continuation needs
    policy/             what plain diffusers loads (policy_ema/ beside it where optimizer.ema_decay is on)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import CheckpointError

FORMAT = 1
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class RunState:
    """Where a run stands. epoch: finished epochs; cursor: next position in the prompt stream; tracker_run:
    MLflow's id."""

    run_id: str
    epoch: int
    cursor: int
    tracker_run: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back, every digest verified. files: contents by relative name."""

    folder: Path
    state: RunState
    config_yaml: str
    files: dict[str, bytes]


def checkpoint_folder(run_folder: Path, epoch: int) -> Path:
    """Where the checkpoint after `epoch` finished epochs lies."""
    return run_folder / "checkpoints" / f"epoch_{epoch:06d}"


def write_checkpoint(run_folder: Path, state: RunState, config_yaml: str, files: Mapping[str, bytes]) -> Path:
    """Write aside, flush to disk, then rename: a reader sees all of it or nothing. Replaces one of the same
    epoch.

    Raises CheckpointError where the disk is full or the folder cannot be written; nothing else is lost then.
    """
    folder = checkpoint_folder(run_folder, state.epoch)
    aside = folder.with_name(f".{folder.name}.partial")
    content = {**files, CONFIG_FILE: config_yaml.encode()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    content[RUN_FILE] = json.dumps(
        {"format": FORMAT, "state": asdict(state), "files": digests}, indent=1
    ).encode()
    try:
        shutil.rmtree(aside, ignore_errors=True)
        for name, data in content.items():
            _write_flushed(aside / name, data)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
        _flush_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"Could not write the checkpoint {folder}: {error}. Free space or mend its rights."
        ) from error
    return folder


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify. Raises CheckpointError where the folder is no checkpoint, or is torn or altered."""
    try:
        header = json.loads((folder / RUN_FILE).read_text())
        if header["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} has format {header['format']}; this version reads format {FORMAT}."
            )
        files = {name: (folder / name).read_bytes() for name in header["files"]}
        state = RunState(**header["state"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no checkpoint, or a torn one: {error.filename} is missing."
        ) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is no checkpoint, or a torn one: {error}") from error
    altered = [
        name for name, data in files.items() if hashlib.sha256(data).hexdigest() != header["files"][name]
    ]
    if altered:
        raise CheckpointError(f"{folder} is damaged: {', '.join(altered)} changed since it was written.")
    return Checkpoint(folder, state, files.pop(CONFIG_FILE).decode(), files)


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first. Unfinished ones are not among them."""
    return sorted((run_folder / "checkpoints").glob("epoch_*"))


def latest_checkpoint(run_folder: Path) -> list[Checkpoint]:
    """The newest checkpoint that is whole, or none where there is no checkpoint at all.

    Raises CheckpointError where there are some and every one is damaged.
    """
    problems = []
    for folder in reversed(list_checkpoints(run_folder)):
        try:
            return [read_checkpoint(folder)]
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("No checkpoint can be used:\n" + "\n".join(problems))
    return []


def prune_checkpoints(run_folder: Path, keep: int) -> None:
    """Delete all but the last and the `keep` before it."""
    for folder in list_checkpoints(run_folder)[: -(keep + 1)]:
        shutil.rmtree(folder)


def _write_flushed(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
