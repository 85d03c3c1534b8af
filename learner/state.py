"""The learner's state: a snapshot of arrays for the object store, or the named files of a checkpoint."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import CheckpointError, WeightsError
from common.model.weights import Tensors, Weights
from common.records import parse_record
from common.trajectory import PolicyStamp
from learner.learner import Learner

Arrays = dict[str, NDArray[Any]]
Files = dict[str, NDArray[np.uint8]]
"""Contents by relative name, as arrays: the object store shares them without a copy."""

HEADER_FILE = "learner.json"
POLICY_FOLDER = "policy"
AVERAGED_FOLDER = "policy_ema"
ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each tensor."""


@dataclass(frozen=True)
class Header:
    """What learner.json holds. published: as in Snapshot; none in a fork, which takes over nothing that is in
    flight."""

    version: int
    published: tuple[tuple[int, str], ...] = ()

    def to_json(self) -> bytes:
        """As read_header reads it."""
        return json.dumps(asdict(self)).encode()


def read_header(files: Mapping[str, bytes | NDArray[np.uint8]]) -> Header:
    """Of a checkpoint's files. Raises CheckpointError where it is not there, or holds something else."""
    try:
        return parse_record(Header, bytes(files[HEADER_FILE]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"The checkpoint's {HEADER_FILE} is missing or damaged: {error}") from error


@dataclass(frozen=True)
class Snapshot:
    """What an exact continuation needs beside the weights, which are published and lie beside it.

    published: version and digest of the weights that trajectories in flight may name, oldest first.
    averages: float32 by parameter; optimizer: by "parameter|what AdamW keeps". unpublished: the trained
    tensors where actors sample with others (Learner.sampling_weights), else empty. On a CPU the arrays are
    the live tensors' memory, see Learner.publish.
    """

    version: int
    published: tuple[tuple[int, str], ...]
    optimizer: Arrays
    averages: Arrays
    unpublished: Arrays


def export_snapshot(learner: Learner) -> Snapshot:
    """The learner as it is."""
    optimizer = {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in learner.parameters.items()
        for key, value in learner.optimizer.state[parameter].items()
    }
    return Snapshot(
        version=learner.version,
        published=tuple((stamp.version, stamp.digest) for stamp in learner.old_policy.stamps),
        optimizer=_arrays(optimizer),
        averages=_arrays(learner.averages),
        unpublished={} if learner.publishes_trained else _arrays(learner.parameters),
    )


def export_state(learner: Learner) -> Files:
    """The files of a checkpoint.

    trainable, optimizer and ema .safetensors hold exact float32 tensors; policy/ (and policy_ema/ where
    ema_decay is on) is what plain diffusers loads.
    """
    files = _exact_files(export_snapshot(learner), _arrays(learner.parameters))
    files |= _policy_files(learner, POLICY_FOLDER)
    if learner.averages:
        current = {name: value.detach().clone() for name, value in learner.parameters.items()}
        _copy_into(learner, learner.averages)
        try:
            files |= _policy_files(learner, AVERAGED_FOLDER)
        finally:
            _copy_into(learner, current)
    return files


def restore_state(learner: Learner, files: Mapping[str, bytes | NDArray[np.uint8]]) -> None:
    """Continue from the files of a checkpoint. Raises CheckpointError, WeightsError."""
    snapshot, trainable = _read(files)
    _restore(learner, snapshot, _tensors(trainable))


def restore_snapshot(learner: Learner, snapshot: Snapshot, weights: Weights) -> None:
    """Continue from a snapshot and the weights that were published before it. Raises WeightsError."""
    if weights.stamp.version != snapshot.version:
        raise WeightsError(f"The snapshot is of version {snapshot.version}, the weights are {weights.stamp}.")
    trained = _tensors(snapshot.unpublished) if snapshot.unpublished else weights.tensors(weights.stamp)
    _restore(learner, snapshot, trained)


def _restore(learner: Learner, snapshot: Snapshot, trainable: Tensors) -> None:
    optimizer = snapshot.optimizer
    _check_names(learner, snapshot)
    learner.restore(trainable, _tensors(snapshot.averages), snapshot.version)
    for version, digest in snapshot.published:
        learner.old_policy.published(PolicyStamp(version, digest, learner.run_id))
    steps = {
        index: {key: torch.tensor(optimizer[f"{name}|{key}"]) for key in ADAM_STATE}
        for index, name in enumerate(learner.parameters if optimizer else ())
    }
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": steps, "param_groups": groups})


def _read(files: Mapping[str, bytes | NDArray[np.uint8]]) -> tuple[Snapshot, Arrays]:
    """With the trained tensors."""
    header = read_header(files)
    try:
        trainable, optimizer, averages = (
            safetensors.numpy.load(bytes(files[f"{name}.safetensors"]))
            for name in ("trainable", "optimizer", "ema")
        )
        return Snapshot(header.version, header.published, optimizer, averages, {}), trainable
    except (KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"The learner's part of the checkpoint is incomplete or damaged: {error}"
        ) from error


def _check_names(learner: Learner, snapshot: Snapshot) -> None:
    """Raise WeightsError where the averages are not those of all trained tensors, or the optimizer's state is
    neither that of all of them nor, before the first step, empty."""
    complete = {f"{name}|{key}" for name in learner.parameters for key in ADAM_STATE}
    optimizer = set(snapshot.optimizer)
    checks = [
        (
            "moving averages",
            set(snapshot.averages),
            set(learner.averages),
            "keep optimizer.ema_decay as it was",
        ),
        ("optimizer's state", optimizer, complete if optimizer else set(), "is torch another version?"),
    ]
    for what, names, allowed, hint in checks:
        missing, extra = sorted(allowed - names), sorted(names - allowed)
        if missing or extra:
            raise WeightsError(
                f"The checkpoint's {what} do not fit the policy: missing {missing[:3]}, not in the policy "
                f"{extra[:3]}; {hint}."
            )


def _exact_files(snapshot: Snapshot, trainable: Arrays) -> Files:
    contents = {
        HEADER_FILE: Header(snapshot.version, snapshot.published).to_json(),
        "trainable.safetensors": safetensors.numpy.save(trainable),
        "optimizer.safetensors": safetensors.numpy.save(snapshot.optimizer),
        "ema.safetensors": safetensors.numpy.save(snapshot.averages),
    }
    return {name: np.frombuffer(data, dtype=np.uint8) for name, data in contents.items()}


def _policy_files(learner: Learner, folder: str) -> Files:
    with tempfile.TemporaryDirectory() as temporary:
        learner.save_policy(Path(temporary))
        paths = sorted(Path(temporary).iterdir())
        return {f"{folder}/{path.name}": np.fromfile(path, dtype=np.uint8) for path in paths}


def _arrays(tensors: Tensors) -> Arrays:
    return {name: value.detach().contiguous().cpu().numpy() for name, value in tensors.items()}


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def _copy_into(learner: Learner, tensors: Tensors) -> None:
    with torch.no_grad():
        for name, value in learner.parameters.items():
            value.copy_(tensors[name])
