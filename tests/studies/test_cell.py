"""A tiny cell: what it samples with, counts and measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.actor import Actor, Sample
from common.config.schema import Config
from common.model.weights import Weights
from common.trajectory import PolicyStamp, PromptTask
from studies.cell import Cell, Measurement
from studies.results import Row
from tests.tiny_config import make_config

JPEG = {"scorer": "jpeg_compressibility"}
REWARDS = {"rewards": {"proxy": JPEG}, "gold": {"gold": {"scorer": "jpeg_incompressibility"}}}


@dataclass
class Watched:
    """An actor that notes which weights each task names."""

    actor: Actor
    versions: list[int] = field(default_factory=list)

    def sample(self, task: PromptTask, weights: Weights) -> Sample:
        self.versions.append(task.stamp.version)
        return self.actor.sample(task, weights)

    def load(self, weights: Weights, stamp: PolicyStamp) -> None:
        self.actor.load(weights, stamp)


def train(pipeline: Path, folder: Path, **changes: Any) -> tuple[Config, list[int], list[Measurement]]:
    """Train a cell. Returns the version that each epoch was sampled with, too."""
    config = make_config(pipeline, folder, {**REWARDS, **changes})
    cell = Cell.of(config)
    watched: Any = Watched(cell.actor)
    measured = list(replace(cell, actor=watched).train())
    return config, watched.versions[:: config.sampling.prompts_per_epoch], measured


def test_rows_say_what_was_measured_and_what_it_took(tiny_pipeline: Path, tmp_path: Path) -> None:
    changes: Mapping[str, Any] = {
        "run.epochs": 3,
        "evaluation.every_epochs": 2,
        "learner": {"micro_batch_size": 12, "step_norms_every": 0},
        "objective": {"kind": "ddpo"},
    }
    _, versions, measured = train(tiny_pipeline, tmp_path, **changes)
    assert versions == [0, 1, 2]
    rows = [Row.of("s", "c", 0, "d", one, None) for one in measured]
    assert [row.epoch for row in rows] == [0, 2, 3]
    assert [row.queries for row in rows] == [0, 16, 24]
    # An image: 4 steps forward, 3 of them forward and backward.
    assert rows[-1].passes == 24 * (4 + 3 * 3)
    assert len({row.weights for row in rows}) == 3
    for prompts in ("seen", "unseen"):
        measured_last = measured[-1].evaluation.of(prompts)
        assert measured_last is not None
        for score in ("proxy", "gold"):
            found = vars(rows[-1])[f"{prompts}_{score}"]
            assert found == pytest.approx(np.mean(measured_last.scores[score]))
    assert np.isnan(rows[0].gradient_norm)
    assert rows[1].gradient_norm > 0


def test_rows_say_how_far_the_policy_is_and_what_the_clip_stopped(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    objective = {"updates_per_epoch": 3, "clip_range": 1e-7}
    _, _, (_, last) = train(tiny_pipeline, tmp_path, objective=objective, **{"run.epochs": 1})
    row = Row.of("s", "c", 0, "d", last, "an alarm")
    first, *later = last.reports
    assert first.stats["clip_share"] == 0
    assert row.clipped == pytest.approx(sum(report.stats["clip_share"] for report in later) / 3)
    assert row.clipped > 0
    # The first epoch's samples are the reference's own.
    assert row.log_ratio == 0
    assert (row.skipped, row.alarm) == (0, True)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"mode": "online", "max_staleness": 1}, [0, 0, 1, 2]),
        pytest.param({"mode": "online", "max_staleness": 2}, [0, 0, 0, 1], marks=pytest.mark.slow),
        pytest.param({"mode": "offline", "folder": "none"}, [0, 0, 0, 0], marks=pytest.mark.slow),
    ],
)
def test_weights_sampled_with_are_as_old_as_the_data_section_says(
    tiny_pipeline: Path, tmp_path: Path, data: dict[str, Any], expected: list[int]
) -> None:
    _, versions, measured = train(tiny_pipeline, tmp_path, data=data, **{"run.epochs": 4})
    assert versions == expected
    assert sum(len(one.reports) for one in measured) == 4
