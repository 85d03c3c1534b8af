"""What the loop keeps of a run that ends before its last epoch, without Ray: all parts but it are made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayError

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
from common.stopwatch import Busy
from common.trajectory import NoiseKey, PolicyStamp, PromptTask, ScorerStamp, TrajectoryGroup
from driver.loop.advantages import Advantages
from driver.loop.ranks import Published, RewindNeeded
from driver.loop.rollouts import Group
from driver.loop.training import Parts, Training
from driver.main import newest_checkpoint
from driver.observe.display import Phase
from driver.observe.guards import Guards
from driver.observe.timeline_log import GroupHistory
from driver.report.evaluation import Evaluation
from driver.run.checkpoint_manager import CheckpointManager
from driver.run.checkpoints import Checkpoint, Checkpoints, RunState, read_checkpoint
from driver.run.folder import ResumePoint
from driver.run.recordings import TrajectoryWriter, open_recording
from driver.stop import StopFlag, StopRequested
from learner.objectives.registry import build_objective
from learner.report import UpdateReport
from reward_service.client.report import RewardReport
from tests.driver.observe.test_epoch_metrics import FAULTS, group, report
from tests.driver.observe.test_guards import bad
from tests.scored_groups import make_group
from tests.tiny_config import make_config

NO_RAY: Any = None

Step = tuple[str, int]
"""A step of the loop, and the finished epochs at which it comes."""


class Script:
    """What goes wrong when. Each part of the run asks it at each of its steps."""

    def __init__(self, troubles: dict[Step, BaseException]) -> None:
        self.troubles = troubles
        self.notes: list[str] = []
        self.epoch = 0
        self.reports: dict[int, list[list[UpdateReport]]] = {}
        self.rewound: list[int] = []
        self.steps: list[str] = []

    def at(self, step: str) -> None:
        """A step is reached; each trouble comes once."""
        self.steps.append(step)
        trouble = self.troubles.pop((step, self.epoch), None)
        if trouble:
            raise trouble


class FakeLearner:
    """Counts epochs; its state is their number."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def begin(self, epoch: int, files: Mapping[str, bytes]) -> Published:
        self.script.epoch = epoch
        return self.published()

    def published(self) -> Published:
        return Published(NO_RAY, PolicyStamp(self.script.epoch, str(self.script.epoch), "run"), 0)

    def restart(self) -> None:
        self.script.at("restart")

    def begin_epoch(self) -> None:
        self.script.at("begin epoch")

    async def submit(self, group: Group) -> None:
        self.script.at("submit")

    async def finish_epoch(
        self, progress: Callable[[int], None]
    ) -> tuple[list[list[UpdateReport]], Published]:
        self.script.at("update")
        self.script.epoch += 1
        return self.script.reports.get(self.script.epoch, [[report()]]), self.published()

    async def export(self) -> dict[str, bytes]:
        self.script.at("export")
        return {"learner.json": str(self.script.epoch).encode()}

    async def rescue(self) -> dict[str, bytes]:
        self.script.at("rescue")
        return {"learner.json": str(self.script.epoch).encode()}


class FakeRollouts:
    """Has trajectories."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.fetched = 0

    async def fetch(self, reference: Any, what: str) -> TrajectoryGroup:
        self.fetched += 1
        return make_group(images=2).trajectory

    def reward_reports(self) -> dict[str, RewardReport]:
        return {}

    def take_history(self) -> list[GroupHistory]:
        return []

    def forget(self) -> None:
        self.script.at("forget")

    def end_sampling(self) -> None:
        self.script.at("end sampling")


class FakeSource:
    """Two groups an epoch."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def prepare(self, epoch: int, weights: Published) -> None:
        self.script.at("prepare")

    def forget(self) -> None:
        self.script.at("forget what is in flight")

    async def groups(self, epoch: int) -> AsyncIterator[Group]:
        for version in (0, 0):
            self.script.at("group")
            score, sampled = group([1.0, 3.0], version)
            noise = NoiseKey(0, "train", epoch, 0)
            task = PromptTask("a cat", 2, noise, sampled.stamp, with_reference=True)
            yield Group(task, NO_RAY, NO_RAY, NO_RAY, score, sampled)


class FakeEvaluator:
    """Nothing to see."""

    images = 4

    async def evaluate(self, epoch: int, weights: Published) -> Evaluation:
        return Evaluation(epoch, weights.stamp, ())


class FakeFaults:
    """None."""

    def since_last(self) -> dict[str, float]:
        return FAULTS


class Watcher:
    """An observer; each thing that it is told is a step of the script."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def has_evaluated(self, epoch: int) -> bool:
        return False

    def note(self, text: str) -> None:
        self.script.notes.append(text)

    def phase(self, phase: Phase, total: int, unit: str = "images") -> None:
        self.script.at(phase.value)

    def progress(self, done: int) -> None:
        self.script.at("progress")

    def group_scored(self, epoch: int, group: int, scorers: Sequence[ScorerStamp]) -> None:
        self.script.at("group scored")

    def alarmed(self, epoch: int, raised: Mapping[str, str], new: Sequence[str]) -> None:
        self.script.at("alarmed")

    def epoch_worked(
        self, epoch: int, work: Busy, histories: Sequence[GroupHistory], reports: Sequence[Any]
    ) -> None:
        self.script.at("epoch worked")

    def epoch_done(self, epoch: int, epoch_metrics: Mapping[str, float]) -> None:
        self.script.at("epoch done")

    def evaluated(self, evaluation: Evaluation, rewards: Mapping[str, Any], seconds: float) -> None:
        self.script.at("evaluated")

    def rewound(self, epoch: int, why: str) -> None:
        self.script.rewound.append(epoch)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = make_config(
        Path("no/model"),
        tmp_path,
        {"run.epochs": 6, "checkpoint": {"every_epochs": 3, "keep": 9}, "evaluation.every_epochs": 100},
    )
    made.run_folder.mkdir(parents=True)
    return made


def train(config: Config, script: Script, checkpoint: Checkpoint | None = None) -> None:
    """Train to the end, or until a trouble of the script stops it."""
    observer = Watcher(script)
    recorder = TrajectoryWriter(config.run_folder / "trajectories", base="b")
    parts: Any = {
        "learner": FakeLearner(script),
        "rollouts": FakeRollouts(script),
        "source": FakeSource(script),
        "evaluator": FakeEvaluator(),
        "observer": observer,
        "stop": StopFlag(),
        "faults": FakeFaults(),
        "guards": Guards.open(config, observer, partial(newest_checkpoint, config), 0),
        "recorder": recorder if config.data.record else None,
        "advantages": Advantages(build_objective(config.objective, 1)),
    }
    with CheckpointManager(config, None, [], script.notes.append) as keeper:
        epoch = checkpoint.state.epoch if checkpoint else 0
        training = Training(config, RunState("run", 0, "tracked"), Parts(**parts, keeper=keeper))
        asyncio.run(training.run(ResumePoint("run", epoch, checkpoint)))


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
@pytest.mark.parametrize("moment", [("group", 4), ("epoch worked", 5), ("epoch done", 5)])
def test_whatever_stops_a_run_leaves_a_checkpoint_of_the_last_finished_epoch(
    config: Config, error: PrdpError | RayError | OSError, moment: Step
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
    checkpoints.write(RunState("run", 0, "t", "elsewhere"), config_to_yaml(config), files)
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


def test_what_cannot_be_learned_again_makes_the_run_go_back_to_the_newest_checkpoint(config: Config) -> None:
    script = Script({("update", 1): RewindNeeded("x"), ("group", 4): RewindNeeded("y")})
    train(config, script)
    assert script.rewound == [0, 3]
    # Rollouts too: they hold what has failed, and would raise it again at what comes next.
    assert [script.steps.count(step) for step in ("forget", "forget what is in flight")] == [2, 2]
    assert kept(config) == [(3, b"3"), (6, b"6")]


@pytest.mark.parametrize("moment", [("evaluating", 0), ("evaluated", 0)])
def test_weights_that_no_actor_had_fetched_before_they_were_lost_are_published_again(
    config: Config, moment: Step
) -> None:
    """The evaluation before the first epoch is the first to need them."""
    script = Script({moment: RewindNeeded("the weights were lost"), ("group", 0): RewindNeeded("again")})
    train(config, script)
    assert script.rewound == [0, 0]
    assert kept(config) == [(3, b"3"), (6, b"6")]


def test_a_run_that_comes_back_again_and_again_is_stopped(config: Config) -> None:
    class Unstable(Script):
        def at(self, step: str) -> None:
            if step == "update":
                raise RewindNeeded("lost")

    with pytest.raises(StuckError, match=r"epoch 0 more than 20 times.*lost"):
        train(config, Unstable({}))


def test_epochs_are_recorded_beside_the_training(config: Config) -> None:
    data = config.data.model_copy(update={"record": True})
    train(config.model_copy(update={"data": data}), Script({}))
    recording = open_recording(config.run_folder / "trajectories")
    assert recording.epochs == list(range(6))
    assert len(list(recording.read_epoch(5))) == 2
