"""A run on a reward that was deployed separately: swapped, and taken down with Serve, while it trains."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from ray import serve

from common.config.load import config_to_yaml
from common.config.services import RewardServiceSection
from driver.run.checkpoints import checkpoint_folder, read_checkpoint
from driver.run.recordings import open_recording
from reward_service.contract.settings import ServedReward
from reward_service.on_ray.app import embedded_app
from tests.integration.rewards.apps import ROOT, Cluster, start_serve
from tests.tiny_config import make_config

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

LIMIT_S = 400.0
EPOCHS = 8
APP = "files"


def deploy(version: str) -> None:
    """Put the reward up, or change the settings of the one that runs."""
    settings = ServedReward(scorer="jpeg_compressibility", version=version)
    built = embedded_app("size", "a person", settings, RewardServiceSection(cpus=0.25))
    serve.run(built, name=APP, route_prefix=None)


def wait_for_epoch(log: Path, epoch: int, run: subprocess.Popen[bytes]) -> None:
    """Until the run's log says that so many epochs are done."""
    end_at = time.monotonic() + LIMIT_S
    while f"epoch {epoch}/{EPOCHS} done" not in log.read_text():
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < end_at, log.read_text()
        time.sleep(0.1)


def test_a_swap_is_recorded_and_a_restart_survived(
    shared: Cluster, tiny_pipeline: Path, tmp_path: Path
) -> None:
    config = make_config(
        tiny_pipeline,
        tmp_path,
        {
            "rewards": {"size": {"app": APP}},
            "ray.address": shared.gcs,
            "run.epochs": EPOCHS,
            "data.record": True,
            "evaluation.every_epochs": EPOCHS,
        },
    )
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    log = tmp_path / "run.log"
    deploy("")
    with log.open("wb") as file:
        run = subprocess.Popen(
            [sys.executable, "train.py", str(tmp_path / "run.yaml")], cwd=ROOT, stdout=file, stderr=file
        )
        try:
            wait_for_epoch(log, 1, run)
            deploy("second")
            wait_for_epoch(log, 3, run)
            # The run's process has handles to the Serve that ends here, and learns of the next one by itself.
            serve.shutdown()
            start_serve(shared.http_port)
            deploy("second")
            assert run.wait(timeout=LIMIT_S) == 0, log.read_text()
        finally:
            run.kill()
            run.wait()
    assert APP in serve.status().applications

    records = json.loads((config.run_folder / "reward_versions.json").read_text())
    assert [(record["name"], record["index"]) for record in records] == [("size", 1), ("size", 2)]
    assert records[1]["version"] == records[0]["version"] + "+second"
    assert "reward size: version" in log.read_text()
    recording = open_recording(config.run_folder / "trajectories")
    versions = [
        group.score.scorers[0].version for epoch in recording.epochs for group in recording.read_epoch(epoch)
    ]
    assert len(versions) == 2 * EPOCHS
    assert versions == sorted(versions)
    assert set(versions) == {record["version"] for record in records}

    tracker_run = read_checkpoint(checkpoint_folder(config.run_folder, EPOCHS)).state.tracker_run
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    curve = {
        metric.step: metric.value for metric in client.get_metric_history(tracker_run, "reward_version/size")
    }
    assert curve == {epoch: 1.0 + (epoch >= records[1]["epoch"]) for epoch in range(1, EPOCHS + 1)}
    assert f"epoch {records[1]['epoch']}" in client.get_run(tracker_run).data.tags["reward_swap/size/2"]
    assert "reward_versions.json" in {item.path for item in client.list_artifacts(tracker_run)}
