"""Evaluations on disk, so that a continued run still compares with the untrained policy."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError
from common.storage import replace_file
from common.trajectory import PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation


def evaluation_file(run_folder: Path, epoch: int) -> Path:
    """Where the evaluation after `epoch` epochs lies."""
    return run_folder / "evaluations" / f"epoch_{epoch:06d}.npz"


def save_evaluation(run_folder: Path, evaluation: Evaluation) -> Path:
    """Write one evaluation as plain arrays and JSON, whole or not at all. Raises RunFolderError."""
    header = {
        "epoch": evaluation.epoch,
        "stamp": asdict(evaluation.stamp),
        "sets": [
            {"name": measured.name, "prompts": measured.prompts, "scores": sorted(measured.scores)}
            for measured in evaluation.sets
        ],
    }
    arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}
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
            header = json.loads(arrays["header"].tobytes())
            sets = tuple(
                PromptSetEvaluation(
                    name=fields["name"],
                    prompts=tuple(fields["prompts"]),
                    scores={name: arrays[f"{number}/{name}"] for name in fields["scores"]},
                    pixels=arrays[f"{number}/pixels"],
                )
                for number, fields in enumerate(header["sets"])
            )
            return Evaluation(header["epoch"], PolicyStamp(**header["stamp"]), sets)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"The evaluation {path} is damaged ({error}). Delete it to go on without it."
        ) from error
