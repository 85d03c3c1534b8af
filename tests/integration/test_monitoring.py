"""A live run watched by a real Prometheus: no panel of the board is empty, and what they show is true."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from common.cluster.instruments import Instruments
from driver.main import train
from driver.observe.gauges import RayGauges
from driver.report.console import PlainConsole
from driver.report.timeline import ACTORS, DRIVER, LEARNER, REWARDS, read_timeline, timeline_files
from driver.run.checkpoints import checkpoint_folder, read_checkpoint
from tests.integration.prometheus import ask, prometheus
from tests.tiny_config import make_config

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EPOCHS, PROMPTS, IMAGES = 3, 4, 4
WINDOW = "15s"
SETTINGS = {
    "run.epochs": EPOCHS,
    "sampling.prompts_per_epoch": PROMPTS,
    "sampling.images_per_prompt": IMAGES,
    "evaluation.every_epochs": EPOCHS,
    "display.timelines": 2,
    "tracker.register_as": "tiny",
}


@dataclass(frozen=True)
class Watched:
    """A run that has ended. address: of the Prometheus that saw it."""

    config: Any
    shown: str
    address: str
    span: tuple[float, float]


@pytest.fixture(scope="module")
def watched(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    config = make_config(tiny_pipeline, folder, SETTINGS)
    text, began = io.StringIO(), time.time()
    shadow = RayGauges(Instruments({"run": config.run.name}))

    def shadow_of_a_reward() -> None:
        # The run has no shadow version; what an application with one reports goes the same way.
        shadow.publish(
            {"shadow/jpeg/reward_mean": 0.5, "shadow/jpeg/correlation": 1.0, "shadow/jpeg/failures": 1.0}
        )

    with pytest.MonkeyPatch.context() as patch, prometheus(folder, shadow_of_a_reward) as address:
        patch.setenv("RAY_metrics_report_interval_ms", "500")
        patch.setattr("common.cluster.instruments.SHOWN_EVERY_S", 0.5)
        assert train(config, PlainConsole(file=text, width=110)) == 0
        time.sleep(1.5)
        yield Watched(config, text.getvalue(), address, (began, time.time()))


def test_no_panel_is_empty(watched: Watched) -> None:
    board = json.loads(Path("deploy/grafana/prdp.json").read_text())

    def has_numbers(query: str) -> bool:
        expr = query.replace("$__rate_interval", WINDOW).replace("$run", watched.config.run.name)
        return any(np.isfinite(values).any() for values in ask(watched.address, expr, *watched.span))

    empty = [
        panel["title"]
        for panel in board["panels"]
        if not all(has_numbers(target["expr"]) for target in panel.get("targets", []))
    ]
    assert empty == []


def test_the_numbers_are_true(watched: Watched) -> None:
    config, address, span = watched.config, watched.address, watched.span
    evaluated = 2 * 2 * config.evaluation.prompts * config.evaluation.images_per_prompt
    most = EPOCHS * PROMPTS * IMAGES + evaluated
    for name, expected in {
        "ray_prdp_scored_images_total": most,
        'ray_prdp_trajectories_total{role="actors"}': most,
        'ray_prdp_trajectories_total{role="learner"}': EPOCHS * PROMPTS * IMAGES,
    }.items():
        (values,) = ask(address, f"sum({name})", *span)
        # The last scrape may have come before the last image.
        assert expected / 3 <= values.max() <= expected, name
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    state = read_checkpoint(checkpoint_folder(config.run_folder, EPOCHS)).state
    history = {point.value for point in client.get_metric_history(state.tracker_run, "reward/mean")}
    (shown,) = ask(address, 'ray_prdp_reward_mean{run="test"}', *span)
    assert set(shown) <= history
    (busy,) = ask(address, "sum(ray_prdp_busy_seconds_total{role='actors'})", *span)
    assert 0 < busy.max() < span[1] - span[0]


def test_the_last_epochs_have_a_timeline_that_accounts_for_every_group(watched: Watched) -> None:
    files = timeline_files(watched.config.run_folder)
    assert [file.stem for file in files] == ["epoch_000002", "epoch_000003"]
    for number, file in enumerate(files, start=2):
        timeline = read_timeline(file)
        groups = {(number - 1) * PROMPTS + index for index in range(PROMPTS)}
        for role in (ACTORS, REWARDS, LEARNER):
            assert {span.group for span in timeline.of(role)} - {None} == groups, role
        assert {span.what for span in timeline.of(DRIVER)} >= {"sampling", "learning"}
        assert 0 < timeline.busy_share(ACTORS) <= 1
    assert "Where the time of the last epoch went" in watched.shown


def test_the_final_policy_is_a_registered_model(watched: Watched) -> None:
    config = watched.config
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    version = client.get_model_version("tiny", "1")
    assert version.tags["reward/jpeg"].endswith("from epoch 0")
    assert "prompts_per_epoch: 4" in version.tags["config"]
    artifacts = {item.path for item in client.list_artifacts(version.run_id, "checkpoint/policy")}
    assert artifacts
    assert version.source.endswith("/checkpoint/policy")
    assert "models:/tiny/1" in watched.shown
