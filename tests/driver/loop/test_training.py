"""What the loop keeps of a run that ends before its last epoch, without Ray: all parts but it are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError, RayError

import driver.loop.training
from common.config.load import config_to_yaml
from common.config.schema import Config
from common.errors import (
    BadNumbersError,
    CheckpointError,
    PrdpError,
    RecordingError,
    RewardError,
    RunFolderError,
    StuckError,
    WeightsError,
)
from common.trajectory import PolicyStamp, ScoredGroup
from driver.loop.learner import RewindNeeded
from driver.loop.published import Published
from driver.loop.signals import StopRequested
from driver.loop.source import Group
from driver.loop.training import Parts, Training
from driver.main import newest_checkpoint
from driver.observe.guards import Guards
from driver.report.evaluation import Evaluation
from driver.run.checkpoint_manager import CheckpointManager
from driver.run.checkpoints import Checkpoint, Checkpoints, RunState, read_checkpoint
from driver.run.folder import ResumePoint
from learner.report import UpdateReport
from tests.driver.observe.test_epoch_metrics import FAULTS, NO_RAY, group, report
from tests.driver.observe.test_guards import bad
from tests.scored_groups import make_group
from tests.tiny_config import make_config

Stopwatch = tuple[str, int]
"""A step of the loop, and the finished epochs at which it comes."""


class Script:
    """What goes wrong when. Each part of the run asks it at each of its steps."""

    def __init__(self, troubles: dict[Stopwatch, BaseException]) -> None:
        self.troubles = troubles
        self.notes: list[str] = []
        self.epoch = 0
        self.reports: dict[int, list[list[UpdateReport]]] = {}

    def at(self, step: str) -> None:
        """A step is reached; each trouble comes once."""
        trouble = self.troubles.pop((step, self.epoch), None)
        if trouble:
            raise trouble


class FakeLearner:
    """Counts epochs; its state is their number."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def begin(self, epoch: int, _files: object) -> Published:
        self.script.epoch = epoch
        return self.published()

    def published(self) -> Published:
        return Published(NO_RAY, PolicyStamp(self.script.epoch, "", "run"), 0)

    def begin_epoch(self) -> None:
        self.script.at("begin epoch")

    def take_in(self, _group: Group) -> None:
        self.script.at("take in")

    def finish_epoch(self) -> tuple[list[list[UpdateReport]], Published]:
        self.script.at("update")
        self.script.epoch += 1
        return self.script.reports.get(self.script.epoch, [[report()]]), self.published()

    def export(self) -> dict[str, bytes]:
        self.script.at("export")
        return {"learner.json": str(self.script.epoch).encode()}

    def rescue(self) -> dict[str, bytes]:
        self.script.at("rescue")
        return {"learner.json": str(self.script.epoch).encode()}


class FakeRun:
    """Rollouts, source, stop flag and fault counter in one, and an observer that only keeps notes."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Whatever the loop tells: it is a step of that name."""
        return lambda *_, **__: self.script.at(name)

    def note(self, text: str) -> None:
        self.script.notes.append(text)

    def has_evaluated(self, _epoch: int) -> bool:
        return False

    def groups(self, _epoch: int) -> Iterator[Group]:
        for version in (0, 0):
            self.script.at("group")
            yield group([1.0, 3.0], version)

    def cursor(self, epochs: int) -> int:
        return 2 * epochs

    def since_last(self) -> dict[str, float]:
        return FAULTS

    def reward_reports(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    made = make_config(
        Path("no/model"),
        tmp_path,
        {"run.epochs": 6, "checkpoint": {"every_epochs": 3, "keep": 9}, "evaluation.every_epochs": 100},
    )
    made.run_folder.mkdir(parents=True)
    stamp = PolicyStamp(0, "", "run")
    monkeypatch.setattr(driver.loop.training, "evaluate", lambda *_: Evaluation(0, stamp, ()))
    made_up = make_group()
    monkeypatch.setattr(Training, "_scored", lambda _self, one: ScoredGroup(made_up.trajectory, one.score))
    return made


def train(config: Config, script: Script, checkpoint: Checkpoint | None = None) -> None:
    """Train to the end, or until a trouble of the script stops it."""
    run: Any = FakeRun(script)
    with CheckpointManager(config, None, [], script.notes.append) as keeper:
        guards = Guards.open(config, run, partial(newest_checkpoint, config), 0)
        learner = cast(Any, FakeLearner(script))
        parts = Parts(learner, run, run, {}, run, run, run, keeper, guards)
        epoch = checkpoint.state.epoch if checkpoint else 0
        Training(config, "run", "tracked", parts).run(ResumePoint("run", epoch, checkpoint))


def kept(config: Config) -> list[tuple[int, bytes]]:
    """Epoch and learner's state of each checkpoint."""
    checkpoints = Checkpoints.of(config)
    found = [read_checkpoint(checkpoints.where(epoch)) for epoch in checkpoints.epochs()]
    return [(one.state.epoch, one.files["learner.json"]) for one in found]


def test_a_run_to_the_end_saves_as_configured(config: Config) -> None:
    train(config, Script({}))
    assert kept(config) == [(3, b"3"), (6, b"6")]


@pytest.mark.parametrize(
    "error",
    [
        RewardError("x"),
        RunFolderError("x"),
        RecordingError("x"),
        StuckError("x"),
        RayActorError(),
        OSError("x"),
    ],
)
@pytest.mark.parametrize("moment", [("group", 4), ("epoch_worked", 5), ("epoch_done", 5)])
def test_whatever_stops_a_run_leaves_a_checkpoint_of_the_last_finished_epoch(
    config: Config, error: PrdpError | RayError | OSError, moment: Stopwatch
) -> None:
    """Also where it comes between an epoch's updates and the end of the epoch."""
    with pytest.raises(type(error)):
        train(config, Script({moment: error}))
    assert kept(config) == [(3, b"3"), (moment[1], str(moment[1]).encode())]


@pytest.mark.parametrize("error", [WeightsError("x"), CheckpointError("x")])
def test_weights_that_nobody_knows_are_not_saved(config: Config, error: PrdpError) -> None:
    with pytest.raises(type(error)):
        train(config, Script({("group", 4): error}))
    assert kept(config) == [(3, b"3")]


@pytest.mark.parametrize("error", [StuckError("x"), RewindNeeded("x"), RayActorError(), RewardError("x")])
def test_a_stop_saves_even_where_the_learner_is_stuck(config: Config, error: Exception) -> None:
    with pytest.raises(StopRequested):
        train(config, Script({("group", 4): StopRequested(), ("export", 4): error}))
    assert kept(config) == [(3, b"3"), (4, b"4")]


def test_a_stop_that_finds_unknown_weights_says_so(config: Config) -> None:
    with pytest.raises(WeightsError):
        train(config, Script({("group", 4): StopRequested(), ("export", 4): WeightsError("x")}))
    assert kept(config) == [(3, b"3")]


@pytest.mark.parametrize("error", [StuckError("no room"), RewindNeeded("no room"), OSError("no room")])
def test_what_cannot_be_saved_is_told_beside_the_error_that_stopped_the_run(
    config: Config, error: Exception
) -> None:
    script = Script({("group", 4): RewardError("the reward fails"), ("rescue", 4): error})
    with pytest.raises(RewardError, match="the reward fails"):
        train(config, script)
    assert script.notes == ["The last finished epoch could not be saved: no room"]


def test_what_a_run_goes_on_from_is_never_written_again(config: Config) -> None:
    """Above all a fork's base: a store that cannot rename loses it where the process dies meanwhile."""
    checkpoints, files = Checkpoints.of(config), {"learner.json": b"base"}
    checkpoints.write(RunState("run", 0, 0, "t", "elsewhere"), config_to_yaml(config), files)
    with pytest.raises(StopRequested):
        train(config, Script({("group", 0): StopRequested()}), checkpoints.newest().checkpoint)
    assert kept(config) == [(0, b"base")]


def test_the_checkpoint_that_an_error_names_is_there(config: Config) -> None:
    """Neither those written while updates are skipped nor the one at the stop push it out."""
    section = config.checkpoint.model_copy(update={"keep": 0, "every_epochs": 1})
    script = Script({})
    blamed = make_group()
    script.reports = {epoch: [bad(blamed)] for epoch in (3, 4, 5)}
    with pytest.raises(BadNumbersError, match="epoch_000002"):
        train(config.model_copy(update={"checkpoint": section}), script)
    assert kept(config) == [(2, b"2"), (5, b"5")]


def test_a_new_run_that_is_stopped_in_its_first_epoch_has_a_checkpoint(config: Config) -> None:
    with pytest.raises(StopRequested):
        train(config, Script({("group", 0): StopRequested()}))
    assert kept(config) == [(0, b"0")]
