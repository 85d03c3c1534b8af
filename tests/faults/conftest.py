"""What the fault tests share: runs that are to be disturbed, and the undisturbed one to compare with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.chaos_run import Outcome, Running
from common.config.schema import Config
from driver.observe.status import RunStatus
from tests.conftest import WholeRun
from tests.tiny_config import WHOLE, make_config

LIMIT_S = 240.0
END_LIMIT_S = 30.0
EPOCHS: int = WHOLE["run.epochs"]

MakeFaulty = Callable[..., Config]
Start = Callable[[Config], Running]


@pytest.fixture
def faulty(tiny_pipeline: Path, tmp_path: Path) -> MakeFaulty:
    """Makes the configuration of a run that is to be disturbed, with other settings where they are given."""
    return lambda **others: make_config(
        tiny_pipeline, tmp_path, {**WHOLE, **{key.replace("__", "."): own for key, own in others.items()}}
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
def whole(whole_run: WholeRun) -> Outcome:
    """What the undisturbed run leaves."""
    return Outcome.of(whole_run.config)


def at(epoch: int, phase: str) -> Callable[[RunStatus], bool]:
    """Whether so many epochs are finished, at least, and the run is in that phase."""
    return lambda status: status.epoch >= epoch and status.phase == phase


def kill(status: RunStatus, kind: str) -> None:
    """Kill every process of a kind."""
    victims = [process.pid for process in status.processes if process.kind == kind]
    assert victims, status
    for victim in victims:
        os.kill(victim, signal.SIGKILL)


def seconds_until_gone(family: set[psutil.Process]) -> float:
    """Until none of them lives."""
    began = time.monotonic()
    _, left = psutil.wait_procs(family, END_LIMIT_S)
    described = [one.as_dict(["pid", "cmdline", "status"]) for one in left]
    for one in left:
        one.kill()
    assert not described
    return time.monotonic() - began
