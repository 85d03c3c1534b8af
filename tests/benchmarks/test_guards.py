"""The cost of the guards is counted as often as a run pays it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.guards import Cost, measure_cost, verdict_of_cost
from tests.tiny_config import make_config


def test_an_epoch_pays_for_each_update_group_and_actor(tmp_path: Path) -> None:
    settings = {"objective.updates_per_epoch": 3, "sampling.prompts_per_epoch": 5, "actors.count": 2}
    config = make_config(Path("no/model"), tmp_path, settings)
    cost = Cost(bare_step=1.0, guarded_step=1.5, check=0.1, probe=0.25, epoch=700.0)
    assert cost.of_epoch(config) == pytest.approx(3 * 0.5 + 3 * 5 * 0.1 + 2 * 0.25)
    assert verdict_of_cost("lora", cost, config).met
    assert verdict_of_cost("lora", cost, config).value == "0.50%"


def test_a_tiny_policy_can_be_measured(tiny_pipeline: Path, tmp_path: Path) -> None:
    cost = measure_cost(make_config(tiny_pipeline, tmp_path), repeats=1, warm_ups=1)
    assert all(seconds > 0 for seconds in vars(cost).values())
