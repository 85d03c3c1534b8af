"""What the fault tests share: one small configuration, and its undisturbed run to compare with."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_run import Outcome, Running
from common.config.schema import Config
from driver.observe.status import RunStatus
from tests.tiny_config import make_config

LIMIT_S = 240.0
EPOCHS = 6
SETTINGS: dict[str, Any] = {
    "run.epochs": EPOCHS,
    "sampling.prompts_per_epoch": 3,
    "objective.updates_per_epoch": 2,
    "optimizer.ema_decay": 0.5,
    "checkpoint": {"every_epochs": 2, "keep": 100},
    "evaluation.every_epochs": 2,
}

MakeFaulty = Callable[..., Config]
Start = Callable[[Config], Running]


@pytest.fixture
def faulty(tiny_pipeline: Path, tmp_path: Path) -> MakeFaulty:
    """Makes the configuration of a run that is to be disturbed, with other settings where they are given."""
    return lambda **others: make_config(
        tiny_pipeline, tmp_path, {**SETTINGS, **{key.replace("__", "."): own for key, own in others.items()}}
    )


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts runs; those that still live at the end of the test are killed."""
    begun: list[Running] = []

    def begin(config: Config) -> Running:
        begun.append(Running.start(config))
        return begun[-1]

    yield begin
    for running in begun:
        running.end()


@pytest.fixture(scope="session")
def whole_config(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of the undisturbed run, which is finished."""
    config = make_config(tiny_pipeline, tmp_path_factory.mktemp("whole"), SETTINGS)
    running = Running.start(config)
    assert running.wait(LIMIT_S) == 0, running.shown
    return config


@pytest.fixture(scope="session")
def whole(whole_config: Config) -> Outcome:
    """What the undisturbed run leaves."""
    return Outcome.of(whole_config)


def at(epoch: int, phase: str) -> Callable[[RunStatus], bool]:
    """Whether so many epochs are finished, at least, and the run is in that phase."""
    return lambda status: status.epoch >= epoch and status.phase == phase


def kill(status: RunStatus, kind: str) -> None:
    """Kill every process of a kind."""
    victims = [process.pid for process in status.processes if process.kind == kind]
    assert victims, status
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
