"""A whole run of a Stable Diffusion XL pipeline, from the command to an adapter for plain diffusers."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import safetensors.torch
from diffusers import StableDiffusionXLPipeline

from common.config.load import config_to_yaml
from driver.run.checkpoints import checkpoint_folder, read_checkpoint
from tests.tiny_config import make_config
from tests.tiny_pipeline import make_tiny_xl_pipeline
from train import main

IMAGES = 4


@pytest.mark.integration
@pytest.mark.slow
def test_the_learner_replays_what_actors_sampled_and_diffusers_loads_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_tiny_xl_pipeline(tmp_path / "xl")
    settings = {
        "sampling.guidance_scale": 3.0,
        "sampling.images_per_prompt": IMAGES,
        # One step of one group a pass, as the actors sample: the same sums to the bit.
        "learner.micro_batch_size": IMAGES,
        "evaluation.every_epochs": 2,
    }
    config = make_config(pipeline, tmp_path, settings)
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    # The command sets it for its process.
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")
    assert main([str(tmp_path / "run.yaml")]) == 0

    folder = checkpoint_folder(config.run_folder, 2)
    checkpoint = read_checkpoint(folder)
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    mismatch = client.get_metric_history(checkpoint.state.tracker_run, "policy/log_ratio_mismatch_max")
    assert [metric.value for metric in mismatch] == [0.0, 0.0]

    plain = StableDiffusionXLPipeline.from_pretrained(pipeline, add_watermarker=False)
    plain.load_lora_weights(folder / "policy")
    loaded = {name: value for name, value in plain.unet.named_parameters() if "lora_" in name}
    trained = safetensors.torch.load(checkpoint.files["trainable.safetensors"])
    assert sum(value.numel() for value in loaded.values()) == sum(value.numel() for value in trained.values())
    assert all(bool((value != 0).any()) for name, value in loaded.items() if "lora_B" in name)
