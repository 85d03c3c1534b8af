"""The learner's state as named files, nothing pickled: a snapshot in memory or a checkpoint on disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import CheckpointError, WeightsError
from common.model.weights import Tensors
from common.trajectory import PolicyStamp
from learner.learner import Learner

Files = dict[str, bytes]
Snapshot = dict[str, NDArray[np.uint8]]
"""The files of an exact continuation as arrays, which the object store shares without a copy."""

POLICY_FOLDER = "policy"
AVERAGED_FOLDER = "policy_ema"
ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each tensor."""


def export_snapshot(learner: Learner) -> Snapshot:
    """What an exact continuation needs: the files of export_state without those for diffusers."""
    return {name: np.frombuffer(data, dtype=np.uint8) for name, data in _exact_files(learner).items()}


def export_state(learner: Learner) -> Files:
    """Contents by relative file name.

    trainable, optimizer and ema .safetensors hold exact float32 tensors; policy/ (and policy_ema/ where
    ema_decay is on) is what plain diffusers loads.
    """
    files = _exact_files(learner)
    files |= _policy_files(learner, POLICY_FOLDER)
    if learner.averages:
        own = {name: value.detach().clone() for name, value in learner.parameters.items()}
        _copy_into(learner, learner.averages)
        try:
            files |= _policy_files(learner, AVERAGED_FOLDER)
        finally:
            _copy_into(learner, own)
    return files


def restore_state(learner: Learner, files: Mapping[str, bytes | NDArray[np.uint8]]) -> None:
    """Continue from the files of export_state or export_snapshot. Raises CheckpointError, WeightsError."""
    try:
        header = json.loads(bytes(files["learner.json"]))
        version = int(header["version"])
        # Checkpoints of format 1 may lack them.
        published = [(int(number), str(digest)) for number, digest in header.get("published", [])]
        trainable, optimizer, averages = (
            safetensors.torch.load(bytes(files[f"{name}.safetensors"]))
            for name in ("trainable", "optimizer", "ema")
        )
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"The learner's part of the checkpoint is incomplete or damaged: {error}"
        ) from error
    _check_names(learner, optimizer, averages)
    learner.restore(trainable, averages, version)
    for number, digest in published:
        learner.experience.published(PolicyStamp(number, digest, learner.run_id))
    state: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(learner.parameters):
        own = {
            key.rsplit("|", 1)[1]: value for key, value in optimizer.items() if key.rsplit("|", 1)[0] == name
        }
        state |= {index: own} if own else {}
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _check_names(learner: Learner, optimizer: Tensors, averages: Tensors) -> None:
    """Raise WeightsError where the averages are not those of all trained tensors, or the optimizer's state is
    neither that of all of them nor, before the first step, empty."""
    whole = {f"{name}|{key}" for name in learner.parameters for key in ADAM_STATE}
    checks = [
        ("moving averages", set(averages), set(learner.averages), "keep optimizer.ema_decay as it was"),
        ("optimizer's state", set(optimizer), whole if optimizer else set(), "is torch another version?"),
    ]
    for what, given, wanted, hint in checks:
        missing, extra = sorted(wanted - given), sorted(given - wanted)
        if missing or extra:
            raise WeightsError(
                f"The checkpoint's {what} do not fit the policy: missing {missing[:3]}, not in the policy "
                f"{extra[:3]}; {hint}."
            )


def _exact_files(learner: Learner) -> Files:
    header = {
        "version": learner.version,
        # What was sampled with these weights, and is still in flight, can be learned after a restart.
        "published": [[stamp.version, stamp.digest] for stamp in learner.experience.stamps],
    }
    return {
        "learner.json": json.dumps(header).encode(),
        "trainable.safetensors": _pack(learner.parameters),
        "optimizer.safetensors": _pack(_optimizer_tensors(learner)),
        "ema.safetensors": _pack(learner.averages),
    }


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    )


def _optimizer_tensors(learner: Learner) -> dict[str, Tensor]:
    """AdamW's state by "parameter name|state name"."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in learner.parameters.items()
        for key, value in learner.optimizer.state[parameter].items()
    }


def _policy_files(learner: Learner, folder: str) -> Files:
    with tempfile.TemporaryDirectory() as temporary:
        learner.save_policy(Path(temporary))
        return {f"{folder}/{path.name}": path.read_bytes() for path in sorted(Path(temporary).iterdir())}


def _copy_into(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in learner.parameters.items():
            value.copy_(tensors[name])
