"""Weights that are swapped on their way: the run stops before a gradient, and the same command goes on."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import mlflow
import pytest
import ray

from benchmarks.chaos_run import Outcome
from common.config.schema import Config
from common.errors import WeightsError
from common.model.weights import Weights
from driver.main import train
from driver.observe.status import read_status
from driver.report.console import PlainConsole
from driver.run.checkpoints import list_checkpoints, read_checkpoint
from learner.ranks import LearnerRanks, PublishedReferences
from tests.faults.conftest import MakeFaulty

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

VERSION = 6
"""After three epochs of two updates; the newest checkpoint is that of two."""


def swapping(publish: Callable[[LearnerRanks], PublishedReferences]) -> Callable[..., PublishedReferences]:
    """Publishes the weights of one version under the stamp of the next."""
    published: list[Weights] = []

    def swapped(ranks: LearnerRanks) -> PublishedReferences:
        references = publish(ranks)
        weights: Weights = ray.get(references.weights)
        published.append(weights)
        if weights.stamp.version != VERSION:
            return references
        return replace(references, weights=ray.put(replace(weights, arrays=published[-2].arrays)))

    return swapped


def learned_epochs(config: Config) -> list[int]:
    """Epochs whose updates are in the tracker."""
    client = mlflow.MlflowClient(f"sqlite:///{config.run_folder.parent.resolve()}/mlflow.db")
    run = read_checkpoint(list_checkpoints(config.run_folder)[-1]).state.tracker_run
    return [own.step for own in client.get_metric_history(run, "objective/loss")]


def test_the_weights_of_another_version_are_found_out(
    whole: Outcome, faulty: MakeFaulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, text = faulty(), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(LearnerRanks, "publish", swapping(LearnerRanks.publish))
        with pytest.raises(WeightsError, match=f"weights object of version {VERSION} .* has been altered"):
            train(config, PlainConsole(file=io.StringIO()))
    assert read_status(config.run_folder).phase == "failed"
    assert learned_epochs(config) == [1, 2, 3]
    assert train(config, PlainConsole(file=text)) == 0
    assert "Going on after epoch 2" in text.getvalue()
    assert whole.differences(Outcome.of(config)) == []
