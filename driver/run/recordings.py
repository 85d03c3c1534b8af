"""Scored trajectories on disk, to replay offline or to look at: one Parquet file an epoch, one row a group.

A file is written aside and renamed when it is whole. A row is a row group of its own, so that writing and
reading hold one group in memory at a time. Columns: prompt and rewards, for people; `header`, JSON of all
that is no array, and of the name, type and shape of each that is one; the arrays; and the SHA-256 of both.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import RecordingError
from common.storage import check_held, flush
from common.trajectory import GroupScore, NoiseKey, PolicyStamp, ScoredGroup, ScorerStamp, TrajectoryGroup
from learner.objectives import Needs

RECORDING_FOLDER = "trajectories"
"""Of a run folder: where its recording is."""
FORMAT_VERSION = 4
SCHEMA = pa.schema(
    {
        "prompt": pa.string(),
        "rewards": pa.list_(pa.float64()),
        "header": pa.string(),
        "arrays": pa.list_(pa.large_binary()),
        "sha256": pa.string(),
    }
)
# What Arrow raises: its own, plain OSError for what the file system refuses, and for names that are no UTF-8.
_ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
# Differences are antisymmetric to rounding: a judge may have computed the two halves apart.
_ASYMMETRY = 1e-9


@dataclass(frozen=True)
class RecordingKind:
    """format: what its files say they are. finite: every number in them is, so that one can train on them."""

    format: str
    finite: bool


TRAINING = RecordingKind("prdp-trajectories", finite=True)
INSPECTION = RecordingKind("prdp-inspection", finite=False)
"""Groups that were left out of the training, to be looked at; nothing trains on them."""


@dataclass(frozen=True)
class TrajectoryWriter:
    """Writes recordings into a folder, which it makes where there is none.

    base: digest of the pretrained model that sampled (common.model.loading.digest_base); training needs it.
    """

    folder: Path
    kind: RecordingKind = TRAINING
    base: str = ""

    def write_epoch(self, epoch: int, groups: Iterable[ScoredGroup]) -> Path:
        """Write epoch_<epoch>.parquet, replacing one of the same name, and return its path.

        Takes the groups one at a time. Raises RecordingError where there is no group, a group is not sound
        (arrays that do not fit or, for training, are not finite), or the disk refuses; then no part of a file
        is left. Raises RunFolderError where the run folder is gone.
        """
        path = self.folder / _file_name(epoch)
        aside = path.with_name(f".{path.name}.writing")
        check_held(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(aside, path, groups)
            flush(aside)
            os.replace(aside, path)
            flush(self.folder)
        except _ARROW_ERRORS as error:
            raise RecordingError(f"Cannot write the recording {path}: {error}") from error
        finally:
            # Where even this is refused, the error on its way says why.
            with suppress(OSError):
                aside.unlink(missing_ok=True)
        return path

    def write_sound(self, epoch: int, groups: Iterable[ScoredGroup]) -> None:
        """write_epoch of the groups that are sound; no file where none is. Raises RecordingError."""
        sound = (group for group in groups if why_unsound(group) is None)
        first = next(sound, None)
        if first is not None:
            self.write_epoch(epoch, chain([first], sound))

    def _write(self, aside: Path, path: Path, groups: Iterable[ScoredGroup]) -> None:
        # Sampled latents do not compress, and statistics would store whole latents again.
        small = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        count = 0
        # A relative path such as a:b/c would be read as a URI.
        with pq.ParquetWriter(aside.absolute(), SCHEMA, write_page_checksum=True, **small) as writer:
            for group in groups:
                count += 1
                reason = why_unsound(group, self.kind.finite)
                if reason is not None:
                    raise RecordingError(f"Group {count} cannot be recorded in {path}: {reason}")
                writer.write_batch(_to_row(group, count), row_group_size=1)
            writer.add_key_value_metadata(
                {
                    "format": self.kind.format,
                    "format_version": str(FORMAT_VERSION),
                    "base": self.base,
                    "groups": str(count),
                }
            )
        if not count:
            raise RecordingError(f"There is no group to record in {path}")


@dataclass(frozen=True)
class Recording:
    """A folder of recorded epochs. epochs: their numbers, increasing."""

    folder: Path
    epochs: list[int]
    kind: RecordingKind

    def read_epoch(self, epoch: int) -> Iterator[ScoredGroup]:
        """The epoch's groups in the order of writing, each checked when it is read; arrays are read-only.

        Raises RecordingError naming the file and the row (from 1) for whatever is not as it was written.
        """
        if epoch not in self.epochs:
            listed = f"{len(self.epochs)} epochs from {self.epochs[0]} to {self.epochs[-1]}"
            raise RecordingError(f"{self.folder} has no epoch {epoch}; it has {listed}")
        path = self.folder / _file_name(epoch)
        for row, batch in _rows(path, self.kind, SCHEMA.names):
            header, arrays = batch.column("header")[0].as_py(), batch.column("arrays")[0].values or []
            contents = [array.as_buffer() for array in arrays]
            if batch.column("sha256")[0].as_py() != _digest(row, header, contents):
                raise RecordingError(f"{path}, row {row}: it is not what was written: the SHA-256 differs")
            yield _group(json.loads(header), contents)

    def digest(self) -> str:
        """SHA-256 (hex) of what is recorded, from the digests of its rows. Raises RecordingError."""
        total = hashlib.sha256()
        for epoch in self.epochs:
            for _, batch in _rows(self.folder / _file_name(epoch), self.kind, ["sha256"]):
                total.update(batch.column("sha256")[0].as_py().encode())
        return total.hexdigest()

    def check_rewards(self, weights: Mapping[str, float]) -> None:
        """Refuse a recording whose scores are not the weighted sums of the rewards of these names: they are
        what is trained on, whatever a reward would say now.

        Looks at the first row of each epoch. Raises RecordingError naming the file.
        """
        for epoch in self.epochs:
            for group in islice(self.read_epoch(epoch), 1):
                reason = _other_rewards(group.score, weights)
                if reason is not None:
                    raise RecordingError(f"{self.folder / _file_name(epoch)}: {reason}")

    def check(self, fingerprint: str, latent_shape: tuple[int, ...], base: str, needs: Needs) -> None:
        """Refuse a recording that a learner of this step distribution, latent shape and base cannot take, or
        that lacks what its objective needs.

        Looks at every row, but not at the arrays. Raises RecordingError naming the file and the row.
        """
        for epoch in self.epochs:
            path = self.folder / _file_name(epoch)
            with _open_file(path, self.kind) as file:
                recorded = _metadata(file)["base"]
            if recorded != base:
                raise RecordingError(
                    f"{path} was sampled from another pretrained model (digest {recorded[:12]}) than this "
                    f"run's ({base[:12]}); model.path and model.revision must be as they were recorded"
                )
            for row, batch in _rows(path, self.kind, ["header"]):
                header = json.loads(batch.column("header")[0].as_py())
                reason = _misfit(header, fingerprint, latent_shape, needs)
                if reason is not None:
                    raise RecordingError(f"{path}, row {row}: {reason}")


def open_recording(folder: Path | str, kind: RecordingKind = TRAINING) -> Recording:
    """Find the epochs of a recording and check that each file is whole and of this kind.

    folder: of the recording, or of the run that recorded it.

    Raises RecordingError for a folder that is missing or has no epoch file, and for a file that is not
    Parquet, Parquet of something else, truncated, or of another format version.
    """
    folder = Path(folder)
    if (folder / RECORDING_FOLDER).is_dir():
        folder = folder / RECORDING_FOLDER
    if not folder.is_dir():
        raise RecordingError(f"There is no folder of recorded trajectories {folder}")
    numbers = [path.stem.removeprefix("epoch_") for path in folder.glob("epoch_*.parquet")]
    epochs = sorted(int(text) for text in numbers if text.isdecimal() and text == f"{int(text):06d}")
    if not epochs:
        raise RecordingError(f"{folder} has no recorded trajectories, no file like {_file_name(0)}")
    for epoch in epochs:
        _open_file(folder / _file_name(epoch), kind).close()
    return Recording(folder, epochs, kind)


def why_unsound(group: ScoredGroup, finite: bool = True) -> str | None:
    """Why arrays do not fit each other, or hold what no sampler and no reward gives; None where all is well.

    finite: NaN and infinities are such values.
    """
    trajectory, differences = group.trajectory, group.score.differences
    nodes, times, chosen = trajectory.nodes, trajectory.times, trajectory.stochastic_steps
    images, steps = len(nodes), len(chosen)
    positions = len(times) + 1 if trajectory.has_steps else 1
    if nodes.shape != (images, positions) or (steps and not trajectory.has_steps):
        return f"nodes must be (B, T+1) with T = {len(times)} times, they are {nodes.shape}"
    if nodes.size and not 0 <= nodes.min() <= nodes.max() < len(trajectory.latents):
        return f"nodes must be rows of the {len(trajectory.latents)} latents"
    if not all(0 <= step < len(times) for step in chosen) or np.any(np.diff(chosen) <= 0):
        return f"stochastic steps must be increasing positions of times, they are {chosen}"
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "latents": ("float32", trajectory.latents.shape),
        "nodes": ("int32", nodes.shape),
        "times": ("float64", times.shape),
        "stochastic_steps": ("int64", (steps,)),
        "log_prob": ("float64", (images, steps)),
        "log_ratio": ("float32", (images, steps)),
        "rewards": ("float64", (images,)),
        "differences": ("float64", (images, images)),
        "advantages": ("float64", (images,)),
    }
    for name, array in _arrays(group).items():
        kind, shape = expected.get(name, ("float64", (images,)))
        if not name.startswith("condition ") and (array.shape != shape or array.dtype.name != kind):
            return f"{name} must be {kind} {shape}, it is {array.dtype.name} {array.shape}"
        if finite and not np.isfinite(array).all():
            return f"{name} holds a value that is not finite"
    differences = np.nan_to_num(differences, posinf=0.0, neginf=0.0)
    tolerance = _ASYMMETRY * float(np.max(np.abs(differences), initial=0.0))
    if np.any(np.abs(differences + differences.T) > tolerance):
        return "the reward differences are not antisymmetric"
    return None


def _file_name(epoch: int) -> str:
    return f"epoch_{epoch:06d}.parquet"


def _arrays(group: ScoredGroup) -> dict[str, NDArray[Any]]:
    trajectory, score = group.trajectory, group.score
    arrays = {
        # First, where Arrow's memory is aligned: a view of them needs no copy.
        "latents": trajectory.latents,
        "nodes": trajectory.nodes,
        "times": trajectory.times,
        "stochastic_steps": trajectory.stochastic_steps,
        "log_prob": trajectory.log_prob,
        "log_ratio": trajectory.log_ratio,
        "rewards": score.rewards,
        "differences": score.differences,
        "advantages": group.advantages,
        **{f"condition {name}": rows for name, rows in trajectory.condition.items()},
        **{f"part {name}": values for name, values in score.parts.items()},
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _to_row(group: ScoredGroup, row: int) -> pa.RecordBatch:
    """A batch of one row, to be the row-th of its file."""
    trajectory, arrays = group.trajectory, _arrays(group)
    header = json.dumps(
        {
            "prompt": trajectory.prompt,
            "noise": vars(trajectory.noise),
            "stamp": vars(trajectory.stamp),
            "schedule": trajectory.steps_fingerprint,
            "scorers": [vars(stamp) for stamp in group.score.scorers],
            "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()],
        }
    )
    contents = [array.tobytes() for array in arrays.values()]
    cells = {
        "prompt": trajectory.prompt,
        "rewards": group.score.rewards,
        "header": header,
        "arrays": contents,
        "sha256": _digest(row, header, contents),
    }
    return pa.RecordBatch.from_pylist([cells], schema=SCHEMA)


def _digest(row: int, header: str, contents: Iterable[Any]) -> str:
    """SHA-256 (hex) of a row's content and place: a damaged file can lead to another row, whole in itself."""
    total = hashlib.sha256(f"{row} {header}".encode())
    for content in contents:
        total.update(content)
    return total.hexdigest()


def _group(header: dict[str, Any], contents: list[pa.Buffer]) -> ScoredGroup:
    arrays = {
        name: np.require(np.frombuffer(content, dtype=kind).reshape(shape), requirements="A")
        for (name, kind, shape), content in zip(header["arrays"], contents, strict=True)
    }

    def named(prefix: str) -> dict[str, NDArray[Any]]:
        return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}

    trajectory = TrajectoryGroup(
        prompt=header["prompt"],
        noise=NoiseKey(**header["noise"]),
        stamp=PolicyStamp(**header["stamp"]),
        latents=arrays["latents"],
        nodes=arrays["nodes"],
        times=arrays["times"],
        stochastic_steps=arrays["stochastic_steps"],
        log_prob=arrays["log_prob"],
        log_ratio=arrays.get("log_ratio"),
        condition=named("condition "),
        steps_fingerprint=header["schedule"],
    )
    scorers = tuple(ScorerStamp(**stamp) for stamp in header["scorers"])
    score = GroupScore(arrays["rewards"], arrays["differences"], named("part "), scorers)
    return ScoredGroup(trajectory, score, arrays.get("advantages"))


def _other_rewards(score: GroupScore, weights: Mapping[str, float]) -> str | None:
    if score.parts.keys() != weights.keys():
        recorded, named = (", ".join(sorted(names)) for names in (score.parts, weights))
        return (
            f"scored by {recorded}, this run's rewards are {named}; name them in the section rewards as they "
            "were recorded"
        )
    total = np.sum([weight * score.parts[name] for name, weight in weights.items()], axis=0)
    if not np.allclose(total, score.rewards, rtol=1e-9, atol=1e-9 * float(np.abs(score.rewards).max())):
        return "scored with other weights of the rewards; give each weight as it was recorded"
    return None


def _misfit(
    header: dict[str, Any], fingerprint: str, latent_shape: tuple[int, ...], needs: Needs
) -> str | None:
    if header["schedule"] != fingerprint:
        return (
            f"sampled from the step distribution {header['schedule']}, this run's is {fingerprint}; "
            "the sections model and sampling must be as they were recorded"
        )
    shapes = {name: tuple(shape) for name, _, shape in header["arrays"]}
    if shapes["latents"][1:] != latent_shape:
        return f"latents are {shapes['latents'][1:]}, this run's model has {latent_shape}"
    if needs.steps and shapes["nodes"][1] == 1:
        return "it holds clean latents alone; record with an objective that has likelihoods, such as prdp"
    if needs.reference and "log_ratio" not in shapes:
        return "it holds no log ratios to the reference, which this objective needs; record with prdp"
    return None


def _rows(path: Path, kind: RecordingKind, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each row, from 1, as a batch of one row."""
    row = 0
    with _open_file(path, kind) as file:
        for part in range(file.num_row_groups):
            try:
                for batch in file.iter_batches(batch_size=1, row_groups=[part], columns=columns):
                    batch.validate(full=True)
                    row += 1
                    yield row, batch
            except _ARROW_ERRORS as error:
                raise RecordingError(f"{path}, row {row + 1}: damaged: {error}") from error
        if row != file.metadata.num_rows:
            raise RecordingError(f"{path}: damaged: {row} rows of {file.metadata.num_rows} can be read")


def _open_file(path: Path, kind: RecordingKind) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except _ARROW_ERRORS as error:
        raise RecordingError(f"{path} is not a whole Parquet file: {error}") from error
    reason = _foreign(file, kind)
    if reason is not None:
        file.close()
        raise RecordingError(f"{path} {reason}")
    return file


def _metadata(file: pq.ParquetFile) -> dict[str, str]:
    pairs = (file.metadata.metadata or {}).items()
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs}


def _foreign(file: pq.ParquetFile, kind: RecordingKind) -> str | None:
    """Why the file is no recording of this kind that this code reads."""
    metadata = _metadata(file)
    version = metadata.get("format_version", "")
    if metadata.get("format") == INSPECTION.format != kind.format:
        return "holds groups that were left out of a training, to be looked at; nothing can train on them"
    if metadata.get("format") != kind.format or not version.isdecimal():
        return f"is Parquet, but no recording of trajectories (its metadata has no format {kind.format})"
    if int(version) != FORMAT_VERSION:
        which = "an earlier" if int(version) < FORMAT_VERSION else "a later"
        return (
            f"was recorded by {which} version of this program (format {version}, this one reads "
            f"{FORMAT_VERSION}). Replay it with that version, or record anew with data.record: true"
        )
    if not file.schema_arrow.equals(SCHEMA):
        return f"has other columns than a recording: {', '.join(file.schema_arrow.names)}"
    if metadata.get("groups") != str(file.metadata.num_rows):
        return f"has {file.metadata.num_rows} rows of the {metadata.get('groups', '?')} that were written"
    return None
