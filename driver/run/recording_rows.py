"""One scored group as one row of a Parquet file: the columns, the checks, and the digest that proves a row.

Latents are little-endian float32 bytes, so that an array over Arrow's memory needs no copy. The small arrays
are lists, the last axis fastest, so that any Parquet reader shows them as numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.trajectory import (
    GroupScore,
    NoiseKey,
    PolicyStamp,
    ScoredGroup,
    ScorerStamp,
    TrajectoryGroup,
)


def _required(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in types.items()]


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


_TEXT, _WHOLE, _FLOAT64 = pa.string(), pa.int64(), pa.float64()
_REQUIRED = _required(
    prompt=_TEXT,
    noise=pa.struct(_required(run_seed=_WHOLE, stream=_TEXT, epoch=_WHOLE, prompt_index=_WHOLE)),
    stamp=pa.struct(_required(version=_WHOLE, digest=_TEXT, run_id=_TEXT)),
    schedule=_TEXT,
    shape=_list(_WHOLE),
    latents=pa.large_binary(),
    nodes=_list(pa.int32()),
    times=_list(_FLOAT64),
    stochastic_steps=_list(_WHOLE),
    log_prob=_list(_FLOAT64),
    condition=_list(
        pa.struct(_required(name=_TEXT, kind=_TEXT, shape=_list(_WHOLE), data=pa.large_binary()))
    ),
    rewards=_list(_FLOAT64),
    differences=_list(_FLOAT64),
    parts=_list(pa.struct(_required(name=_TEXT, values=_list(_FLOAT64)))),
    scorers=_list(pa.struct(_required(name=_TEXT, version=_TEXT, digest=_TEXT))),
    sha256=_TEXT,
)
_OPTIONAL = [pa.field("log_ratio", _list(pa.float32())), pa.field("advantages", _list(_FLOAT64))]
SCHEMA = pa.schema([*_REQUIRED, *_OPTIONAL])
# Differences are antisymmetric to rounding: a judge may have computed the two halves apart.
_ASYMMETRY = 1e-9


class BadRowError(ValueError):
    """A group that cannot be recorded, or a row that is none; the text says why."""


def to_row(group: ScoredGroup, row: int, finite: bool = True) -> pa.RecordBatch:
    """A batch of one row, to be the row-th of its file.

    Raises BadRowError for arrays that do not fit each other or, if they have to be, are not finite.
    """
    check_group(group, finite)
    trajectory, score = group.trajectory, group.score
    cells = {
        "prompt": trajectory.prompt,
        "noise": vars(trajectory.noise),
        "stamp": vars(trajectory.stamp),
        "schedule": trajectory.schedule,
        "shape": list(trajectory.latents.shape),
        "latents": np.ascontiguousarray(trajectory.latents, dtype="<f4").tobytes(),
        "nodes": trajectory.nodes.reshape(-1),
        "times": trajectory.times,
        "stochastic_steps": trajectory.stochastic_steps,
        "log_prob": trajectory.log_prob.reshape(-1),
        "log_ratio": None if trajectory.log_ratio is None else trajectory.log_ratio.reshape(-1),
        "condition": [_condition_cell(name, rows) for name, rows in trajectory.condition.items()],
        "advantages": group.advantages,
        "rewards": score.rewards,
        "differences": score.differences.reshape(-1),
        "parts": [{"name": name, "values": values} for name, values in score.parts.items()],
        "scorers": [vars(stamp) for stamp in score.scorers],
        "sha256": digest(group, row),
    }
    try:
        return pa.RecordBatch.from_pylist([cells], schema=SCHEMA)
    except (pa.ArrowException, OverflowError) as error:
        raise BadRowError(f"a value does not fit its column: {error}") from error


def from_row(batch: pa.RecordBatch, row: int, finite: bool = True) -> ScoredGroup:
    """The group of a batch of one row, the row-th of its file; its arrays are read-only.

    Raises BadRowError for a row that is not as it was written.
    """
    cells = {name: batch.column(name)[0] for name in SCHEMA.names}
    shape = tuple(cells["shape"].as_py())
    if len(shape) < 2 or min(shape) < 1:
        raise BadRowError(f"shape must be (R, ...), at least one latent, it is {shape}")
    images, times, steps = len(cells["rewards"]), _numbers(cells["times"]), len(cells["stochastic_steps"])
    log_ratio, advantages = cells["log_ratio"], cells["advantages"]
    group = ScoredGroup(
        trajectory=TrajectoryGroup(
            prompt=cells["prompt"].as_py(),
            noise=NoiseKey(**cells["noise"].as_py()),
            stamp=PolicyStamp(**cells["stamp"].as_py()),
            latents=_shaped("latents", _float32(cells["latents"]), shape),
            nodes=_shaped("nodes", _numbers(cells["nodes"]), (images, len(times) + 1)),
            times=times,
            stochastic_steps=_numbers(cells["stochastic_steps"]),
            log_prob=_shaped("log_prob", _numbers(cells["log_prob"]), (images, steps)),
            log_ratio=(
                _shaped("log_ratio", _numbers(log_ratio), (images, steps)) if log_ratio.is_valid else None
            ),
            condition={part["name"].as_py(): _condition_rows(part) for part in cells["condition"]},
            schedule=cells["schedule"].as_py(),
        ),
        score=GroupScore(
            rewards=_shaped("rewards", _numbers(cells["rewards"]), (images,)),
            differences=_shaped("differences", _numbers(cells["differences"]), (images, images)),
            parts={part["name"].as_py(): _numbers(part["values"]) for part in cells["parts"]},
            scorers=tuple(ScorerStamp(**scorer) for scorer in cells["scorers"].as_py()),
        ),
        advantages=_numbers(advantages) if advantages.is_valid else None,
    )
    check_group(group, finite)
    if digest(group, row) != cells["sha256"].as_py():
        raise BadRowError("its content is not what was written: the SHA-256 differs")
    return group


def check_group(group: ScoredGroup, finite: bool = True) -> None:
    """Raise BadRowError where arrays do not fit each other, or hold what no sampler and no reward gives.

    finite: NaN and infinities are such values.
    """
    trajectory, score = group.trajectory, group.score
    nodes, chosen = trajectory.nodes, trajectory.stochastic_steps
    if nodes.ndim != 2 or nodes.shape[1] != len(trajectory.times) + 1:
        raise BadRowError(
            f"nodes must be (B, T+1) with T = {len(trajectory.times)} times, they are {nodes.shape}"
        )
    if nodes.size and not 0 <= nodes.min() <= nodes.max() < len(trajectory.latents):
        raise BadRowError(f"nodes must be rows of the {len(trajectory.latents)} latents")
    if not all(0 <= step < len(trajectory.times) for step in chosen) or np.any(np.diff(chosen) <= 0):
        raise BadRowError(f"stochastic steps must be increasing positions of times, they are {chosen}")
    _check_arrays(_arrays(group), nodes.shape, len(chosen), finite)
    differences = np.nan_to_num(score.differences, posinf=0.0, neginf=0.0)
    tolerance = _ASYMMETRY * float(np.max(np.abs(differences), initial=0.0))
    if np.any(np.abs(differences + differences.T) > tolerance):
        raise BadRowError("the reward differences are not antisymmetric")


def digest(group: ScoredGroup, row: int) -> str:
    """SHA-256 (hex) over all of the group, names, types, shapes and bytes, and over its row in the file.

    The row, because a damaged table of contents can lead to another one, whole in itself.
    """
    trajectory = group.trajectory
    arrays = _arrays(group)
    header = {
        "row": row,
        "prompt": trajectory.prompt,
        "noise": vars(trajectory.noise),
        "stamp": vars(trajectory.stamp),
        "schedule": trajectory.schedule,
        "scorers": [vars(stamp) for stamp in group.score.scorers],
        "arrays": [(name, array.dtype.str, array.shape) for name, array in arrays.items()],
    }
    total = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays.values():
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _arrays(group: ScoredGroup) -> dict[str, NDArray[Any]]:
    """Every array of a group, in one order, parts last."""
    trajectory, score = group.trajectory, group.score
    return {
        "latents": trajectory.latents,
        "nodes": trajectory.nodes,
        "times": trajectory.times,
        "stochastic_steps": trajectory.stochastic_steps,
        "log_prob": trajectory.log_prob,
        **({} if trajectory.log_ratio is None else {"log_ratio": trajectory.log_ratio}),
        **({} if group.advantages is None else {"advantages": group.advantages}),
        "rewards": score.rewards,
        "differences": score.differences,
        **{f"condition {name}": rows for name, rows in trajectory.condition.items()},
        **{f"part {name}": values for name, values in score.parts.items()},
    }


def _check_arrays(
    arrays: Mapping[str, NDArray[Any]], nodes: tuple[int, ...], steps: int, finite: bool
) -> None:
    images = nodes[0]
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "latents": ("float32", arrays["latents"].shape),
        "nodes": ("int32", nodes),
        "times": ("float64", arrays["times"].shape),
        "stochastic_steps": ("int64", (steps,)),
        "log_prob": ("float64", (images, steps)),
        "log_ratio": ("float32", (images, steps)),
        "rewards": ("float64", (images,)),
        "differences": ("float64", (images, images)),
    }
    for name, array in arrays.items():
        kind, shape = expected.get(name, ("float64", (images,)))
        if name.startswith("condition "):
            kind, shape = array.dtype.name, array.shape
        if array.shape != shape or array.dtype.name != kind:
            raise BadRowError(f"{name} must be {kind} {shape}, it is {array.dtype.name} {array.shape}")
        if finite and not np.isfinite(array).all():
            raise BadRowError(f"{name} holds a value that is not finite")


def _condition_cell(name: str, rows: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "kind": rows.dtype.str, "shape": list(rows.shape), "data": rows.tobytes()}


def _condition_rows(part: pa.StructScalar) -> NDArray[Any]:
    name, shape = part["name"].as_py(), tuple(part["shape"].as_py())
    try:
        values: NDArray[Any] = np.frombuffer(part["data"].as_buffer(), dtype=part["kind"].as_py())
    except (TypeError, ValueError) as error:
        raise BadRowError(f"condition {name} is no array: {error}") from error
    return _shaped(f"condition {name}", values, shape)


def _float32(cell: pa.LargeBinaryScalar) -> NDArray[np.float32]:
    data = cell.as_buffer()
    if data.size % 4:
        raise BadRowError(f"latents have {data.size} bytes, which is no number of float32 values")
    return np.frombuffer(data, dtype="<f4")


def _numbers(cell: pa.ListScalar) -> NDArray[Any]:
    return cell.values.to_numpy()


def _shaped(name: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if values.size != np.prod(shape) or min(shape, default=0) < 0:
        raise BadRowError(f"{name} has {values.size} numbers, its shape {shape} needs {np.prod(shape)}")
    return values.reshape(shape)
