"""A real MLflow server over HTTP, with a folder of artifacts behind it: one run across resumes, one model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from common.config.services import TrackerSection
from driver.report.tracker import RunEnd, Tracker, open_tracker
from tests.integration.prometheus import ended_at_last, free_port, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def address(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    options = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options, "--artifacts-destination", str(artifacts)],
            stdout=log,
            stderr=log,
            env=os.environ | quiet,
            start_new_session=True,
        )
    with ended_at_last(process):
        wait_for(f"http://127.0.0.1:{port}/health", process, 90.0)
        yield f"http://127.0.0.1:{port}"


def open_at(address: str, folder: Path, resume: str) -> Tracker:
    return open_tracker(TrackerSection(uri=address, experiment="served"), "demo", folder, resume)


def test_a_run_goes_on_over_http_and_its_policy_is_registered(
    address: str, artifacts: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "weights.safetensors").write_bytes(b"\x00" * 2048)
    first = open_at(address, tmp_path, "")
    first.log_config({"run.epochs": "1"}, "run: {epochs: 1}\n")
    first.log_metrics({"reward/mean": 0.25}, 1)
    first.finish(RunEnd.STOPPED)

    second = open_at(address, tmp_path, first.run_id)
    assert second.run_id == first.run_id
    second.log_metrics({"reward/mean": 0.5}, 2)
    second.log_image("before_after/unseen prompts", Image.new("RGB", (8, 8)), 2)
    second.log_folder(policy, "checkpoint/policy")
    tags = {"reward/jpeg": "1", "config": "x: 1"}
    addresses = [second.register("served model", "checkpoint/policy", "a test", tags) for _ in range(2)]
    assert addresses == ["models:/served model/1", "models:/served model/2"]
    second.finish(RunEnd.FINISHED)
    assert (first.lost_writes, second.lost_writes) == (0, 0)

    client = mlflow.MlflowClient(address)
    (run,) = client.search_runs([client.get_experiment_by_name("served").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "reward/mean")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5)]
    version = client.get_model_version("served model", "2")
    assert version.tags == tags
    assert version.run_id == run.info.run_id
    (kept,) = artifacts.rglob("weights.safetensors")
    assert kept.stat().st_size == 2048
    downloaded = Path(client.download_artifacts(run.info.run_id, "checkpoint/policy", str(tmp_path)))
    assert (downloaded / "weights.safetensors").read_bytes() == b"\x00" * 2048
