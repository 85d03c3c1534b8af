"""Evaluations on disk, so that a continued run still compares with the untrained policy."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError
from common.records import parse_record
from common.storage import replace_file
from common.trajectory import PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation


@dataclass(frozen=True)
class _Set:
    """scores: names. versions: see PromptSetEvaluation."""

    name: str
    prompts: tuple[str, ...]
    scores: tuple[str, ...]
    versions: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Header:
    """What of an evaluation is no array."""

    epoch: int
    stamp: PolicyStamp
    sets: tuple[_Set, ...]


def evaluation_file(run_folder: Path, epoch: int) -> Path:
    """Where the evaluation after `epoch` epochs lies."""
    return run_folder / "evaluations" / f"epoch_{epoch:06d}.npz"


def save_evaluation(run_folder: Path, evaluation: Evaluation) -> Path:
    """Write one evaluation as plain arrays and JSON, whole or not at all. Raises RunFolderError."""
    sets = tuple(
        _Set(own.name, own.prompts, tuple(sorted(own.scores)), dict(own.versions)) for own in evaluation.sets
    )
    header = json.dumps(asdict(_Header(evaluation.epoch, evaluation.stamp, sets)))
    arrays: dict[str, Any] = {"header": np.frombuffer(header.encode(), dtype=np.uint8)}
    for number, measured in enumerate(evaluation.sets):
        arrays[f"{number}/pixels"] = measured.pixels
        arrays |= {f"{number}/{name}": values for name, values in measured.scores.items()}
    path = evaluation_file(run_folder, evaluation.epoch)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    replace_file(path, packed.getvalue())
    return path


def load_evaluations(run_folder: Path) -> list[Evaluation]:
    """All evaluations of a run, oldest first. Raises CheckpointError where one is damaged."""
    files = sorted((run_folder / "evaluations").glob("epoch_[0-9]*[0-9].npz"))
    return [_load(path) for path in files]


def _load(path: Path) -> Evaluation:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = parse_record(_Header, arrays["header"].tobytes())
            sets = tuple(
                PromptSetEvaluation(
                    name=fields.name,
                    prompts=fields.prompts,
                    scores={name: arrays[f"{number}/{name}"] for name in fields.scores},
                    pixels=arrays[f"{number}/pixels"],
                    versions=fields.versions,
                )
                for number, fields in enumerate(header.sets)
            )
            return Evaluation(header.epoch, header.stamp, sets)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"The evaluation {path} is damaged ({error}). Delete it to go on without it."
        ) from error
