"""Runs of other objectives that are stopped go on to the bits of one that never was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from driver.main import train
from driver.report.console import PlainConsole
from driver.run.checkpoints import Checkpoints, read_checkpoint
from tests.tiny_config import make_config

pytestmark = [pytest.mark.integration, pytest.mark.slow]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "ddpo": {"kind": "ddpo", "baseline": "prompt", "history_minimum": 8, "updates_per_epoch": 2},
    "grpo": {"kind": "grpo"},
    "rebel": {"kind": "rebel", "updates_per_epoch": 2},
    "dpok": {"kind": "dpok", "history_minimum": 8, "kl_weight": 1.0, "extremes": 1},
    "rwr": {"kind": "rwr", "noise_levels": "trained"},
    "rwr, sparse": {"kind": "rwr", "weighting": "sparse", "kept_share": 0.5, "pairs_per_image": 2},
    "nft": {"kind": "nft", "pairs_per_image": 3, "updates_per_epoch": 2, "old_decay_rate": 0.1},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_continued_run_has_the_bits_of_one_in_one_piece(
    tiny_pipeline: Path, tmp_path: Path, kind: str
) -> None:
    """Six prompts, so with four an epoch some come again in the second, with rewards remembered."""
    settings = {
        "objective": OBJECTIVES[kind],
        "sampling.prompts_per_epoch": 4,
        "sampling.steps": 3,
        "run.epochs": 3,
        "evaluation.every_epochs": 10,
        "checkpoint.every_epochs": 1,
    }
    ends, histories = [], []
    for parts in ((3,), (1, 3)):
        for number, epochs in enumerate(parts):
            changed = {**settings, "run.name": f"parts{len(parts)}", "run.epochs": epochs}
            config = make_config(tiny_pipeline, tmp_path, changed)
            assert train(config, PlainConsole(quiet=True)) == 0, number
        checkpoint = read_checkpoint(Checkpoints.of(config).where(3))
        kept = [bytes(checkpoint.files[f"{name}.safetensors"]) for name in ("trainable", "ema")]
        ends.append(kept)
        histories.append(json.dumps(dict(checkpoint.state.history)))
    assert ends[0] == ends[1]
    assert histories[0] == histories[1]
    assert (histories[0] != "{}") == (kind in ("ddpo", "dpok"))
