"""What the fault tests share: one small configuration, and its undisturbed run to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_run import Outcome, Running
from common.config.schema import Config
from tests.tiny_config import make_config

LIMIT_S = 240.0
EPOCHS = 6
SETTINGS: dict[str, Any] = {
    "run.epochs": EPOCHS,
    "sampling.prompts_per_epoch": 3,
    "objective.updates_per_epoch": 2,
    "optimizer.ema_decay": 0.5,
    "checkpoint": {"every_epochs": 2, "keep": 100},
    "evaluation.every_epochs": 3,
}

MakeFaulty = Callable[..., Config]


@pytest.fixture
def faulty(tiny_pipeline: Path, tmp_path: Path) -> MakeFaulty:
    """Makes the configuration of a run that is to be disturbed, with other settings where they are given."""
    return lambda **others: make_config(
        tiny_pipeline, tmp_path, {**SETTINGS, **{key.replace("__", "."): own for key, own in others.items()}}
    )


@pytest.fixture
def start() -> Iterator[Callable[[Config], Running]]:
    """Starts runs; those that still live at the end of the test are killed."""
    begun: list[Running] = []

    def begin(config: Config) -> Running:
        begun.append(Running.start(config))
        return begun[-1]

    yield begin
    for running in begun:
        running.end()


@pytest.fixture(scope="session")
def whole(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the undisturbed run leaves."""
    config = make_config(tiny_pipeline, tmp_path_factory.mktemp("whole"), SETTINGS)
    running = Running.start(config)
    assert running.wait(LIMIT_S) == 0, running.shown
    return Outcome.of(config)
