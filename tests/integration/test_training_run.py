"""Whole runs on real Ray, real Serve, real MLflow, with the tiny random pipeline."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from pyarrow import fs

from actors.sampler import sample_group
from common.config.schema import Config
from common.errors import RunFolderError
from common.trajectory import PromptTask
from driver.main import train
from driver.report.console import PlainConsole
from driver.run.checkpoints import Checkpoints, checkpoint_folder, read_checkpoint
from driver.run.evaluations import load_evaluations
from driver.run.recordings import open_recording
from driver.standalone import load_checkpoint, load_pretrained
from studies.cell import Cell
from tests.conftest import WholeRun
from tests.tiny_config import WHOLE, make_config

EPOCHS: int = WHOLE["run.epochs"]
pytestmark = pytest.mark.integration


def run(pipeline: Path, folder: Path, overrides: dict[str, Any]) -> tuple[Config, str]:
    """Train; returns the configuration and what the terminal showed."""
    config, text = make_config(pipeline, folder, overrides), io.StringIO()
    assert train(config, PlainConsole(file=text, width=110)) == 0
    return config, text.getvalue()


def weights_of(config: Config, epoch: int) -> dict[str, torch.Tensor]:
    """The trained tensors of a checkpoint."""
    files = read_checkpoint(checkpoint_folder(config.run_folder, epoch)).files
    return safetensors.torch.load(files["trainable.safetensors"])


def assert_equal_checkpoints(first: Config, second: Config, epoch: int) -> None:
    """Weights, optimizer state and averages, bit for bit."""
    one, two = (read_checkpoint(Checkpoints.of(config).where(epoch)).files for config in (first, second))
    for name in ("trainable.safetensors", "optimizer.safetensors", "ema.safetensors", "learner.json"):
        assert one[name] == two[name], name


def test_a_run_shows_table_pictures_and_next_commands(whole_run: WholeRun) -> None:
    for word in ("unseen", "sample.py", "mlflow"):
        assert word in whole_run.shown
    assert (whole_run.config.run_folder / "before_after.png").stat().st_size > 1000


def test_a_cell_of_a_study_gives_the_bits_of_the_run(whole_run: WholeRun) -> None:
    cell = [measured.evaluation for measured in Cell.of(whole_run.config).train()]
    run = load_evaluations(whole_run.config.run_folder)
    assert [one.epoch for one in cell] == [one.epoch for one in run]
    assert [one.stamp.digest for one in cell] == [one.stamp.digest for one in run]
    for here, there in zip(cell, run, strict=True):
        for ours, theirs in zip(here.sets, there.sets, strict=True):
            np.testing.assert_array_equal(ours.scores["reward"], theirs.scores["reward"])


def test_tracker_holds_config_metrics_pictures_and_weights(whole_run: WholeRun) -> None:
    config = whole_run.config
    state = read_checkpoint(checkpoint_folder(config.run_folder, EPOCHS)).state
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    tracked = client.get_run(state.tracker_run)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["sampling.steps"] == "4"
    for name in (
        "reward/mean",
        "objective/loss",
        "policy/log_ratio_mismatch_max",
        "optimizer/gradient_norm_step_0",
        "time/reward_idle_share",
        "eval/unseen/reward",
        "transport/bytes_moved",
    ):
        assert np.isfinite(tracked.data.metrics[name]), name
    assert tracked.data.metrics["policy/log_ratio_mismatch_max"] < 1e-5
    assert tracked.data.metrics["policy/version"] == 2 * EPOCHS
    assert len(client.get_metric_history(state.tracker_run, "reward/mean")) == EPOCHS
    artifacts = {item.path for item in client.list_artifacts(state.tracker_run)}
    assert {"config.yaml", "images", "checkpoint"} <= artifacts


def test_weights_changed_and_load_with_plain_diffusers(whole_run: WholeRun, tiny_pipeline: Path) -> None:
    config = whole_run.config
    tensors = weights_of(config, 2)
    assert any(bool((value != 0).any()) for name, value in tensors.items() if "lora_B" in name)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.load_lora_weights(checkpoint_folder(config.run_folder, 2) / "policy")
    loaded = {name: value for name, value in pipeline.unet.named_parameters() if "lora_" in name}
    assert sum(value.numel() for value in loaded.values()) == sum(value.numel() for value in tensors.values())


def test_the_checkpoint_samples_like_the_actors(whole_run: WholeRun) -> None:
    """The epoch after the checkpoint's (epochs count from 0), made again in this process with its weights."""
    config = whole_run.config
    recorded = next(open_recording(config.run_folder / "trajectories").read_epoch(2)).trajectory
    loaded = load_pretrained(config)
    assert recorded.stamp.digest != loaded.stamp.digest
    loaded.policy.load(weights_of(config, 2))
    task = PromptTask(recorded.prompt, recorded.num_images, recorded.noise, recorded.stamp, False)
    again, _ = sample_group(task, loaded.policy, None, loaded.steps)
    np.testing.assert_array_equal(again.latents, recorded.latents)
    averaged = load_checkpoint(config, checkpoint_folder(config.run_folder, 2))
    assert averaged.stamp.version == recorded.stamp.version == 4
    assert averaged.stamp.digest not in (recorded.stamp.digest, loaded.stamp.digest)


@pytest.mark.slow
def test_a_recording_replays_offline(tiny_pipeline: Path, tmp_path: Path) -> None:
    """The first recorded epoch is data of the pretrained policy, so replaying it is the same first epoch."""
    online, _ = run(tiny_pipeline, tmp_path / "online", {**WHOLE, "run.epochs": 1})
    data = {"mode": "offline", "folder": str(online.run_folder / "trajectories")}
    replayed, _ = run(tiny_pipeline, tmp_path / "offline", {**WHOLE, "run.epochs": 1, "data": data})
    expected, found = weights_of(online, 1), weights_of(replayed, 1)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits(
    whole_run: WholeRun, tiny_pipeline: Path, tmp_path: Path, s3_folder: str
) -> None:
    """Also with checkpoints on a remote store, one of them unfinished, and on another number of actors."""
    whole = whole_run.config
    settings = {**WHOLE, "checkpoint": {"every_epochs": 1, "folder": s3_folder}}
    begun, _ = run(tiny_pipeline, tmp_path, {**settings, "run.epochs": 1})
    unfinished, path = fs.FileSystem.from_uri(Checkpoints.of(begun).where(2))
    with unfinished.open_output_stream(f"{path}/trainable.safetensors") as stream:
        stream.write(b"cut")
    continued, shown = run(tiny_pipeline, tmp_path, {**settings, "run.epochs": 2, "actors.count": 2})
    assert_equal_checkpoints(whole, continued, 2)
    place = Checkpoints.of(continued).where(2)
    assert place.startswith("s3://")
    assert "epoch_000002" in shown
    assert "was not finished and is left out" in " ".join(shown.split())
    state = read_checkpoint(place).state
    client = mlflow.MlflowClient(f"sqlite:///{continued.run_folder.parent.resolve()}/mlflow.db")
    assert len(client.get_metric_history(state.tracker_run, "reward/mean")) == 2


@pytest.mark.slow
def test_a_fork_begins_where_the_other_run_ended(
    whole_run: WholeRun, tiny_pipeline: Path, tmp_path: Path
) -> None:
    source = whole_run.config
    place = checkpoint_folder(source.run_folder, EPOCHS)
    config = make_config(tiny_pipeline, tmp_path, {**WHOLE, "run.epochs": 1, "optimizer.learning_rate": 1e-4})
    text = io.StringIO()
    assert train(config, PlainConsole(file=text, width=500), str(place)) == 0
    begun, ended = load_evaluations(config.run_folder)
    last = load_evaluations(source.run_folder)[-1]
    assert (begun.epoch, begun.stamp.digest) == (0, last.stamp.digest)
    np.testing.assert_array_equal(begun.sets[1].scores["reward"], last.sets[1].scores["reward"])
    was, now = (read_checkpoint(folder) for folder in (place, checkpoint_folder(config.run_folder, 1)))
    assert now.state.run_id == begun.stamp.run_id != was.state.run_id
    assert (begun.stamp.version, ended.stamp.version) == (2 * EPOCHS, 2 * EPOCHS + 2)
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    tags = client.get_run(now.state.tracker_run).data.tags
    assert tags["forked_from"] == now.state.forked_from == f"{place} of run {was.state.run_id}"
    assert f"begins with {place}" in text.getvalue()


def test_a_finished_run_and_another_configuration_are_refused(
    whole_run: WholeRun, tiny_pipeline: Path
) -> None:
    config = whole_run.config
    with pytest.raises(RunFolderError, match=rf"finished run of {EPOCHS} epochs.*run\.epochs"):
        train(config, PlainConsole(file=io.StringIO()))
    other = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 0.5})}
    )
    with pytest.raises(RunFolderError, match=r"optimizer\.learning_rate"):
        train(other, PlainConsole(file=io.StringIO()))
    assert weights_of(config, 2)


@pytest.mark.slow
def test_a_run_goes_on_with_changed_prompts_and_rewards_and_says_so(
    whole_run: WholeRun, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """What was measured before is not compared with what was measured otherwise, and nothing fails."""
    shutil.copytree(
        whole_run.config.run_folder, tmp_path / "runs" / "test", ignore=shutil.ignore_patterns("plots")
    )
    rewards = {"jpeg": {"scorer": "jpeg_incompressibility"}}
    config = make_config(tiny_pipeline, tmp_path, {**WHOLE, "run.epochs": EPOCHS + 1, "rewards": rewards})
    (tmp_path / "unseen.txt").write_text("five\nother\nprompts\nhere\n")
    with pytest.raises(RunFolderError, match=r"rewards\.jpeg\.scorer.*\n.*prompts\.unseen"):
        train(config, PlainConsole(file=io.StringIO()))
    text = io.StringIO()
    assert train(config, PlainConsole(file=text, width=300), accept_changes=True) == 0
    result = (config.run_folder / "result.md").read_text()
    for shown in (result, text.getvalue()):
        assert f"Changed from epoch {EPOCHS} on: prompts.unseen" in shown
    assert f"before is after epoch {EPOCHS}" in result
    state = read_checkpoint(checkpoint_folder(config.run_folder, EPOCHS + 1)).state
    assert [(epoch, change.split(":")[0]) for epoch, change in state.changes] == [
        (EPOCHS, "rewards.jpeg.scorer"),
        (EPOCHS, "prompts.unseen"),
    ]
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    assert "prompts.unseen" in client.get_run(state.tracker_run).data.tags["changed/2"]


@pytest.mark.slow
def test_full_finetuning_with_staleness_ema_two_ranks_and_guidance(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    config, _ = run(
        tiny_pipeline,
        tmp_path,
        {
            "policy": {"kind": "full"},
            "data": {"max_staleness": 1},
            "optimizer.ema_decay": 0.9,
            "optimizer.learning_rate": 1e-4,
            "learner.workers": 2,
            "sampling.guidance_scale": 3.0,
            "run.epochs": 3,
        },
    )
    folder = checkpoint_folder(config.run_folder, 3)
    plain = UNet2DConditionModel.from_pretrained(folder / "policy")
    for name, value in weights_of(config, 3).items():
        assert torch.equal(plain.get_parameter(name).data, value), name
    averaged = UNet2DConditionModel.from_pretrained(folder / "policy_ema")
    assert not torch.equal(averaged.conv_in.weight, plain.conv_in.weight)
    state = read_checkpoint(folder).state
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    ages = [metric.value for metric in client.get_metric_history(state.tracker_run, "policy/age_epochs")]
    assert ages == [0.0, 1.0, 1.0]
    assert json.loads(read_checkpoint(folder).files["learner.json"])["version"] == 3
