"""Checkpoints: folders that are whole or not there, with the digest of every file.

<run folder>/checkpoints/epoch_000012/          or <checkpoint.folder>/<run.name>/epoch_000012/
    run.json            epoch, run id, tracker run, gold scores, digest of every file and of it
    config.yaml         the whole configuration
    learner.json, trainable.safetensors, optimizer.safetensors, ema.safetensors      what an exact
    continuation needs
    policy/             what plain diffusers loads (policy_ema/ beside it where optimizer.ema_decay is on)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.config.schema import Config
from common.errors import CheckpointError, DamagedError
from common.places import join_place, split_place
from common.records import parse_record
from common.storage import COMMIT_FILE, Content, Storage

FORMAT = 2
WRITERS = {1: "0.1"}
"""Which version of this project wrote the formats that are no longer read."""
CONFIG_FILE = "config.yaml"
FOLDER = "checkpoints"
_NAME = re.compile(r"epoch_(\d{6,})")
MEND = "Free space, or mend the rights, the network, or the credentials in the environment."


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    epoch: finished epochs; tracker_run: MLflow's id;
    forked_from: the checkpoint that the run began with, empty where it began with the pretrained model;
    golds: finished epochs and mean gold score of each evaluation so far.
    history: what the objective remembers of earlier rewards, see RewardHistory.
    inputs: digest of each model part, prompt set and recording that the run reads, by name.
    changes: after how many epochs a person had the run go on with something changed, and what.
    """

    run_id: str
    epoch: int
    tracker_run: str
    forked_from: str = ""
    golds: tuple[tuple[int, float], ...] = ()
    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back, every digest verified. place: path or URI; files: contents by relative name."""

    place: str
    state: RunState
    config_yaml: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, if there is one. notes: what was left out on the way, and why."""

    checkpoint: Checkpoint | None
    notes: tuple[str, ...]


def checkpoint_name(epoch: int) -> str:
    """Name of the folder of the checkpoint after `epoch` finished epochs."""
    return f"epoch_{epoch:06d}"


def checkpoint_folder(run_folder: Path, epoch: int) -> Path:
    """Where that checkpoint lies, if checkpoint.folder is empty."""
    return run_folder / FOLDER / checkpoint_name(epoch)


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Finished checkpoints of a run folder, oldest first, if checkpoint.folder is empty."""
    checkpoints = Checkpoints(Storage.open(run_folder / FOLDER))
    return [checkpoint_folder(run_folder, epoch) for epoch in checkpoints.epochs()]


def read_checkpoint(place: str | Path, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    """Read and verify the checkpoint at a path or URI.

    wanted: whether a file, by its relative name, is to be read; None = all of them. Raises CheckpointError
    where there is no checkpoint or it cannot be read, DamagedError where it is torn or altered.
    """
    folder, name = split_place(str(place))
    return _read(Storage.open(folder), name, wanted)


class Checkpoints:
    """The checkpoints of a run, in one place. Only one process writes them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @staticmethod
    def of(config: Config) -> Checkpoints:
        """Those of the configured run. Raises CheckpointError where checkpoint.folder cannot be opened."""
        elsewhere = config.checkpoint.folder
        place = join_place(elsewhere, config.run.name) if elsewhere else config.run_folder / FOLDER
        return Checkpoints(Storage.open(place))

    @property
    def place(self) -> str:
        """Path or URI of the folder that they lie in."""
        return self._storage.place

    def where(self, epoch: int) -> str:
        """Path or URI of one of them."""
        return join_place(self.place, checkpoint_name(epoch))

    def check_writable(self) -> None:
        """Raise CheckpointError where nothing can be written there."""
        with self._reaching("written"):
            self._storage.check_writable()

    def epochs(self) -> list[int]:
        """Epochs of the finished ones, increasing; damaged ones are among them."""
        with self._reaching("listed"):
            return _epochs(self._storage.names())

    def run_ids(self) -> dict[int, str]:
        """Of which run each is, by epoch; damaged ones are left out. Raises CheckpointError."""
        with self._reaching("read"):
            found = {epoch: self._run_id(checkpoint_name(epoch)) for epoch in self.epochs()}
        return {epoch: run_id for epoch, run_id in found.items() if run_id is not None}

    def write(self, state: RunState, config_yaml: str, files: Mapping[str, Content]) -> str:
        """Write one, replacing that of the same epoch; a reader sees all of it or nothing. Returns its place.

        Raises CheckpointError where it cannot be written, or where a checkpoint of another run lies there;
        nothing else is lost then.
        """
        name, place = checkpoint_name(state.epoch), self.where(state.epoch)
        content = {**files, CONFIG_FILE: config_yaml.encode()}
        digests = {file: _sha256(data) for file, data in content.items()}
        header = {"format": FORMAT, "state": asdict(state), "files": digests}
        content[COMMIT_FILE] = json.dumps({**header, "digest": _digest(header)}, indent=1).encode()
        try:
            self._refuse_another_run(name, state.run_id)
            self._storage.write(name, content)
        except OSError as error:
            raise CheckpointError(f"Could not write the checkpoint {place}: {error}. {MEND}") from error
        return place

    def newest(self) -> Found:
        """The newest checkpoint that is whole; none where there is no finished checkpoint at all.

        Raises CheckpointError where there are some and every one is damaged, or where one cannot be read for
        another reason than damage: an older one would silently throw epochs away.
        """
        with self._reaching("listed"):
            unfinished = _epochs(self._storage.unfinished())
        notes = [
            f"The checkpoint {self.where(epoch)} was not finished and is left out." for epoch in unfinished
        ]
        problems = []
        for epoch in reversed(self.epochs()):
            try:
                return Found(_read(self._storage, checkpoint_name(epoch), None), tuple(notes))
            except DamagedError as error:
                problems.append(str(error))
                notes.append(f"{error} The one before it is used.")
        if problems:
            raise CheckpointError(
                "No checkpoint can be used:\n  " + "\n  ".join(problems) + "\nBring one back from a copy, or "
                f"delete {self.place} to begin anew."
            )
        return Found(None, tuple(notes))

    def prune(self, kept: Collection[int]) -> None:
        """Delete all but those of these epochs, and what was left unfinished. Raises CheckpointError."""
        for epoch in self.epochs():
            if epoch not in kept:
                with self._reaching("deleted"):
                    self._storage.delete(checkpoint_name(epoch))
        with self._reaching("deleted"):
            self._storage.clean(lambda name: bool(_epochs([name])))

    @contextmanager
    def on_disk(self, epoch: int, folder: str) -> Iterator[Path]:
        """A folder of a checkpoint, such as policy/, as files on this machine while the context lasts."""
        with ExitStack() as stack:
            with self._reaching("read"):
                path = stack.enter_context(self._storage.on_disk(checkpoint_name(epoch), folder))
            yield path

    def _refuse_another_run(self, name: str, run_id: str) -> None:
        """Two runs that write to one place would delete each other's checkpoints."""
        if name not in self._storage.names():
            return
        other = self._run_id(name)
        if other not in (None, run_id):
            raise CheckpointError(
                f"{join_place(self.place, name)} is a checkpoint of another run ({other}). Choose another "
                "run.name or checkpoint.folder."
            )

    def _run_id(self, name: str) -> str | None:
        """None where it cannot be read of what is there."""
        try:
            return str(_header(self._storage, name)["state"]["run_id"])
        except (DamagedError, KeyError, TypeError):
            return None

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"Checkpoints in {self.place} cannot be {what}: {error}. {MEND}") from error


def _sha256(content: Content) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.data).hexdigest()


def _epochs(names: Collection[str]) -> list[int]:
    return sorted(int(found.group(1)) for name in names if (found := _NAME.fullmatch(name)))


def _header(storage: Storage, name: str) -> dict[str, Any]:
    place = join_place(storage.place, name)
    try:
        header = json.loads(storage.read(name, COMMIT_FILE))
    except FileNotFoundError as error:
        raise DamagedError(f"{place} is no checkpoint, or a torn one: {COMMIT_FILE} is missing.") from error
    except ValueError as error:
        raise DamagedError(f"{place} is no checkpoint, or a torn one: {COMMIT_FILE}: {error}.") from error
    if not isinstance(header, dict):
        raise DamagedError(f"{place} is no checkpoint: its {COMMIT_FILE} holds no mapping.")
    return header


def _digest(header: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a header's content, as it comes back from JSON."""
    content = json.dumps([header["state"], header["files"]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _read(storage: Storage, name: str, wanted: Callable[[str], bool] | None) -> Checkpoint:
    place = join_place(storage.place, name)
    try:
        header = _header(storage, name)
        if header["format"] != FORMAT:
            raise CheckpointError(_other_format(place, header["format"]))
        digests = parse_record(dict[str, str], json.dumps(header["files"]).encode())
        state = parse_record(RunState, json.dumps(header["state"]).encode())
        if header["digest"] != _digest(header):
            raise DamagedError(f"{place} is damaged: {COMMIT_FILE} changed since it was written.")
        if _epochs([name]) not in ([], [state.epoch]):
            raise DamagedError(f"{place} is the checkpoint after epoch {state.epoch}, under another's name.")
        chosen = [file for file in digests if wanted is None or wanted(file)]
        files = {file: _read_file(storage, name, file, digests[file]) for file in chosen}
        return Checkpoint(place, state, files.pop(CONFIG_FILE, b"").decode(), files)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(f"{place} is no checkpoint, or a torn one: {error!r}.") from error
    except OSError as error:
        raise CheckpointError(f"{place} cannot be read: {error}. {MEND}") from error


def _other_format(place: str, number: int) -> str:
    writer = WRITERS.get(number, "of another version")
    return (
        f"{place} was written by prdp-on-ray {writer} (checkpoint format {number}; this version reads "
        f"{FORMAT}). Go on with it by that version, or choose another run.name to begin anew. Its policy "
        "folder is what diffusers loads, whatever the version."
    )


def _read_file(storage: Storage, name: str, file: str, digest: str) -> bytes:
    place = join_place(storage.place, name)
    try:
        data = storage.read(name, file)
    except FileNotFoundError as error:
        raise DamagedError(f"{place} is a torn checkpoint: {file} is missing.") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise DamagedError(f"{place} is damaged: {file} changed since it was written.")
    return data
