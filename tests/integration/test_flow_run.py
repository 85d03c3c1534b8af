"""Whole runs of transformer families, with a window: resumed to the same bits, evaluated, sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

import sample
from driver import api
from driver.run.checkpoints import Checkpoints, read_checkpoint
from tests.common.model.families.test_flow import ROWS
from tests.integration.test_training_run import assert_equal_checkpoints, run

IMAGES = 4
SETTINGS: dict[str, Any] = {
    "sampling.steps": 5,
    "sampling.stochastic_steps": "auto",
    "sampling.window": {"kind": "random", "size": 2},
    "sampling.images_per_prompt": IMAGES,
    # One step of one group a pass, as the actors sample: the same sums to the bit.
    "learner.micro_batch_size": IMAGES,
    "model.text_encoder": "drop",
    "optimizer.ema_decay": 0.5,
    "checkpoint.every_epochs": 1,
    "evaluation.every_epochs": 2,
}
FAMILIES = ("flux dev", "pixart", "sana", "qwen image", "z-image", "flux.2 klein")


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("family", "sampler"), [("sd3", "cps"), *((name, "auto") for name in FAMILIES)])
def test_a_run_of_a_family_goes_on_to_the_same_bits(tmp_path: Path, family: str, sampler: str) -> None:
    row = ROWS[family]
    pipeline = row.make(tmp_path / "pipeline")
    settings = {
        **SETTINGS,
        "sampling.guidance_scale": row.scale,
        "sampling.sampler": {"kind": sampler},
        **row.settings,
    }
    whole, _ = run(pipeline, tmp_path / "whole", settings)
    run(pipeline, tmp_path / "parts", {**settings, "run.epochs": 1})
    continued, _ = run(pipeline, tmp_path / "parts", settings)
    assert_equal_checkpoints(whole, continued, 2)
    place = Checkpoints.of(whole).where(2)
    client = mlflow.MlflowClient(f"sqlite:///{whole.run_folder.parent.resolve()}/mlflow.db")
    mismatch = client.get_metric_history(
        read_checkpoint(place).state.tracker_run, "policy/log_ratio_mismatch_max"
    )
    assert [metric.value for metric in mismatch] == [0.0, 0.0]
    picture = tmp_path / "trained.png"
    assert sample.main(["a cat", "--checkpoint", place, "--images", "2", "--output", str(picture)]) == 0
    trained, pretrained = np.asarray(Image.open(picture)), api.sample("a cat", None, whole, images=2)
    assert np.any(trained != np.concatenate(list(pretrained), axis=1))
    before, after = api.evaluate(place, whole)
    assert before.stamp.digest != after.stamp.digest
