"""Whole runs of flow-matching families, with a window: resumed to the same bits, evaluated, sampled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from driver import api
from driver.run.checkpoints import Checkpoints, read_checkpoint
from tests.integration.test_training_run import assert_equal_checkpoints, run
from tests.tiny_flow import make_tiny_flux, make_tiny_sd3

IMAGES = 4
SETTINGS: dict[str, Any] = {
    "sampling.steps": 5,
    "sampling.stochastic_steps": "auto",
    "sampling.window": {"kind": "random", "size": 2},
    "sampling.images_per_prompt": IMAGES,
    # One step of one group a pass, as the actors sample: the same sums to the bit.
    "learner.micro_batch_size": IMAGES,
    "model.offload_text_encoder": True,
    "optimizer.ema_decay": 0.5,
    "checkpoint.every_epochs": 1,
    "evaluation.every_epochs": 2,
}


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "scale", "sampler"), [(make_tiny_sd3, 4.5, "cps"), (make_tiny_flux, 3.5, "auto")]
)
def test_a_run_of_a_flow_family_goes_on_to_the_same_bits(
    tmp_path: Path, make: Callable[[Path], Path], scale: float, sampler: str
) -> None:
    pipeline = make(tmp_path / "pipeline")
    settings = {
        **SETTINGS,
        "sampling.guidance_scale": scale,
        "sampling.sampler": {"kind": sampler},
        "sampling.height": 32,
        "sampling.width": 32,
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
    trained, pretrained = (api.sample("a cat", where, whole, images=2) for where in (place, None))
    assert trained.shape == (2, 32, 32, 3)
    assert np.any(trained != pretrained)
    assert api.evaluate(place, whole)
