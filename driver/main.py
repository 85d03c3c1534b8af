"""One training run from a validated configuration: check, start, train, show what came of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.cluster.instruments import Instruments, shown
from common.config.load import config_to_yaml, public_yaml
from common.config.schema import Config
from common.errors import ConfigError
from common.hidden import without_secrets
from common.model.loading import check_model, choose_device
from driver.finish import show_result
from driver.loop import balance
from driver.loop.advantages import Advantages
from driver.loop.cluster import ray_cluster
from driver.loop.evaluation import Evaluator
from driver.loop.faults import FaultCounter
from driver.loop.learner import FaultTolerantLearner
from driver.loop.rollouts import Rollouts
from driver.loop.services import Services, beside, services
from driver.loop.source import OfflineSource, OnlineSource, lost_samples
from driver.loop.training import Parts, Training
from driver.observe.display import open_display
from driver.observe.gauges import QueueGauges, RayGauges
from driver.observe.guards import Guards
from driver.observe.observer import Observer, Outlets, first_charts
from driver.observe.start import StartReport
from driver.observe.status import StatusFile, epochs_reached
from driver.observe.timeline_log import TimelineLog
from driver.report.console import PlainConsole
from driver.report.evaluation import Evaluation
from driver.report.tracker import RunEnd, Tracker, flat_params, open_tracker
from driver.run.changes import digest_inputs
from driver.run.checkpoint_manager import CheckpointManager
from driver.run.checkpoints import Checkpoints, RunState
from driver.run.evaluations import load_evaluations
from driver.run.folder import (
    Journal,
    ResumePoint,
    claim,
    find_beginning,
    write_journal,
)
from driver.run.fork import begin_fork
from driver.run.prompts import PromptSet, PromptStream, choose_prompts, open_prompts
from driver.run.recordings import RECORDING_FOLDER, Recording, TrajectoryWriter, open_recording
from driver.run.reward_versions import VersionLog, load_versions
from driver.stalls import StallReporter
from driver.stop import StopFlag, StopRequested
from learner.objectives.registry import build_objective
from reward_service.client.entries import check_entries

STOPPED = 130


@dataclass(frozen=True)
class Inputs:
    """What the configuration names, opened and checked before Ray starts. recording: where it is offline."""

    train: PromptSet
    unseen: PromptSet
    recording: Recording | None


def check_inputs(config: Config, waits_for: Callable[[str], None] = lambda _: None) -> Inputs:
    """Open and check everything that can be checked without Ray. Raises the error of whatever is wrong.

    waits_for: told what is being checked, in words.
    """
    waits_for("the prompts to be read")
    train, unseen = open_prompts(config.prompts.train), open_prompts(config.prompts.unseen)
    for name, prompts in {"prompts.train": train, "prompts.unseen": unseen}.items():
        if len(prompts) < config.evaluation.prompts:
            raise ConfigError(
                f"{name} has {len(prompts)} prompts, fewer than evaluation.prompts = "
                f"{config.evaluation.prompts}. "
                "Lower the one or give more of the other."
            )
    waits_for("the model's files to be checked")
    check_device(config)
    check_model(config)
    waits_for("the rewards to be checked")
    check_entries({**config.rewards, **config.gold})
    if config.data.mode != "offline":
        return Inputs(train, unseen, None)
    recording = open_recording(config.data.folder)
    recording.check_rewards({name: reward.weight for name, reward in config.rewards.items()})
    return Inputs(train, unseen, recording)


def check_device(config: Config) -> None:
    """Raise ConfigError or ModelError where CUDA is wanted of processes that will see no GPU."""
    if config.ray.address == "local":
        choose_device(config.model.device)
    blind = [name for name in ("actors", "learner") if not vars(config)[name].gpus]
    if config.model.device == "cuda" and blind:
        raise ConfigError(
            f"model.device is cuda, but {' and '.join(f'{name}.gpus' for name in blind)} is 0: these see no "
            "GPU. Set actors.gpus=0.4 learner.gpus=0.6 to share each GPU, more for whole ones, or "
            "model.device=auto."
        )


@dataclass(frozen=True)
class Session:
    """What one process of a run begins with, and those who watch it.

    reached: epochs that earlier processes had finished.
    """

    config: Config
    inputs: Inputs
    beginning: ResumePoint
    observer: Observer
    stop: StopFlag
    reached: int


def train(
    config: Config, console: PlainConsole, fork: str | None = None, accept_changes: bool = False
) -> int:
    """Run to the end, or until stopped.

    fork: the checkpoint that a new run begins with. accept_changes: go on where the run depends on something
    that has changed, see find_beginning.

    Returns the process's exit status: 0 finished, 130 stopped with a checkpoint.
    """
    with ExitStack() as stack:
        display = stack.enter_context(closing(open_display(config.display, console)))
        display.start(config.run.epochs)
        start = StartReport(display, config.run.epochs)
        inputs = check_inputs(config, start.waits_for)
        stack.enter_context(claim(config.run_folder))
        start.waits_for("the digests of the model's files")
        beginning = begin(config, inputs, fork, accept_changes)
        reached = epochs_reached(config.run_folder, beginning.run_id)
        earlier = earlier_evaluations(config, beginning)
        status = StatusFile(config, beginning.run_id, reached)
        start.keep_in(status, beginning.epoch)
        start.waits_for("the tracking store to open")
        instruments = Instruments({"run": config.run.name})
        try:
            with (
                status.until_the_end(),
                tracked(config, beginning) as tracker,
                started_ray(config, start) as logs,
                shown(instruments),
                StopFlag() as stop,
            ):
                outlets = Outlets(
                    display,
                    tracker,
                    RayGauges.start(instruments),
                    status,
                    TimelineLog(config.run_folder, config.display.timelines),
                )
                versions = VersionLog(load_versions(config.run_folder, beginning.epoch))
                observer = Observer(config, outlets, beginning.epoch, earlier, versions)
                observer.note(f"What the run's processes print is in {logs} (worker-*.out and .err).")
                if warning := idle_warning(config):
                    observer.note(warning)
                session = Session(config, inputs, beginning, observer, stop, reached)
                begun_with = beginning.checkpoint.state if beginning.checkpoint else None
                keeper = CheckpointManager(config, begun_with, earlier, observer.note)
                asyncio.run(run(session, keeper, instruments, start.waits_for))
                display.close()
                show_result(config, observer, tracker, console, beginning.changes)
                keep_journal(config, beginning, tracker, finished=config.run.epochs)
        except StopRequested:
            display.close()
            console.print(stopped_text(config), soft_wrap=True)
            return STOPPED
    return 0


@contextmanager
def started_ray(config: Config, start: StartReport) -> Iterator[Path]:
    """See ray_cluster."""
    local = config.ray.address == "local"
    start.waits_for("Ray to start" if local else f"the cluster at {config.ray.address}")
    with ray_cluster(config) as logs:
        yield logs


def begin(config: Config, inputs: Inputs, fork: str | None, accept_changes: bool) -> ResumePoint:
    """Where the run begins, once nothing that it depends on has changed. Its folder is claimed. Raises
    RunFolderError, CheckpointError."""
    digests = digest_inputs(config, inputs.train, inputs.unseen, inputs.recording)
    if fork is not None:
        begin_fork(config, fork, digests, accept_changes)
    return find_beginning(config, digests, accept_changes)


def earlier_evaluations(config: Config, beginning: ResumePoint) -> list[Evaluation]:
    """Those of the run so far. What comes after the checkpoint comes again; so does that of its epoch, where
    something has changed since. Raises CheckpointError where one is damaged."""
    last = beginning.epoch - 1 if beginning.accepted else beginning.epoch
    known = load_evaluations(config.run_folder) if beginning.epoch else []
    return [one for one in known if one.epoch <= last and one.stamp.run_id == beginning.run_id]


def idle_warning(config: Config) -> str | None:
    """That actors or learner would wait for each other for long, and numbers that balance them."""
    # What an objective needs does not depend on the size of a latent.
    needs = build_objective(config.objective, 1).needs
    return balance.advice(config, balance.estimate(config, needs))


async def run(
    session: Session, keeper: CheckpointManager, instruments: Instruments, waits_for: Callable[[str], None]
) -> None:
    """Start everything on Ray, and train. waits_for: told what the start waits for, in words."""
    stalls = StallReporter(session.observer.note)
    config, run_id = session.config, session.beginning.run_id
    with beside(tell_of_stop(session)):
        async with services(config, run_id, session.stop, stalls, waits_for) as started:
            waits_for("the learner to publish the first weights")
            with keeper:
                await run_epochs(session, started, stalls, keeper, instruments)


async def tell_of_stop(session: Session) -> None:
    """Answer the signal at once: what it waits for may take minutes."""
    await session.stop.asked()
    session.observer.stop_asked()


def stopped_text(config: Config) -> str:
    """What is kept of a run that was stopped."""
    checkpoints = Checkpoints.of(config)
    saved = [checkpoints.where(epoch) for epoch in checkpoints.epochs()]
    kept = f"the last checkpoint is {saved[-1]}" if saved else "there was no finished epoch to keep"
    return f"Stopped; {kept}. The same command goes on from there."


def newest_checkpoint(config: Config, epochs: int) -> str:
    """Where the newest checkpoint of at most so many epochs is, in words.

    Raises CheckpointError where they cannot be listed.
    """
    checkpoints = Checkpoints.of(config)
    saved = [checkpoints.where(epoch) for epoch in checkpoints.epochs() if epoch <= epochs]
    return saved[-1] if saved else "there is none"


@contextmanager
def tracked(config: Config, beginning: ResumePoint) -> Iterator[Tracker]:
    """The tracker's run, closed with the status that fits how the training ended."""
    tracker = open_tracker(
        config.tracker,
        config.run.name,
        config.run_folder.parent,
        beginning.tracker_run,
        same_again=not config.data.max_staleness and not beginning.accepted,
        charts=first_charts(config),
    )
    end = RunEnd.FAILED
    try:
        keep_journal(config, beginning, tracker, finished=0)
        tracker.log_config(flat_params(without_secrets(config.model_dump(mode="json"))), public_yaml(config))
        if beginning.forked_from:
            tracker.set_tags({"forked_from": beginning.forked_from})
        for number, (epoch, text) in enumerate(beginning.changes, start=1):
            tracker.set_tags({f"changed/{number}": f"epoch {epoch}: {text}"})
        yield tracker
        end = RunEnd.FINISHED
    except StopRequested:
        end = RunEnd.STOPPED
        raise
    except KeyboardInterrupt:
        end = RunEnd.CUT_OFF
        raise
    finally:
        tracker.finish(end)


def keep_journal(config: Config, beginning: ResumePoint, tracker: Tracker, finished: int) -> None:
    """Write what a killed run is recognised by. finished: its epochs once its result has been shown."""
    journal = Journal(
        run_id=beginning.run_id,
        tracker_run=tracker.run_id,
        config=config_to_yaml(config),
        finished=finished,
        forked_from=beginning.forked_from,
        inputs=beginning.inputs,
    )
    write_journal(config.run_folder, journal)


def going_on(config: Config, beginning: ResumePoint, reached: int) -> list[str]:
    """Where a continued run goes on, and what it does again. reached: epochs that had been finished."""
    lines = []
    if beginning.checkpoint is not None:
        lines.append(f"Going on after epoch {beginning.epoch} from {beginning.checkpoint.place}.")
    if reached > beginning.epoch:
        lines.append(f"Epochs {beginning.epoch + 1} to {reached} had been finished, and are done again.")
    lost = lost_samples(config, beginning.epoch)
    return [*lines, lost] if lost else lines


async def run_epochs(
    session: Session,
    started: Services,
    stalls: StallReporter,
    keeper: CheckpointManager,
    instruments: Instruments,
) -> None:
    """Introduce the parts to each other and train."""
    config, inputs, beginning, observer = (
        session.config,
        session.inputs,
        session.beginning,
        session.observer,
    )
    stream = PromptStream(inputs.train, config.run.seed)
    dropped = config.reward_service.max_dropped_share
    rollouts = Rollouts(started.pool, started.rewards, dropped, session.stop, stalls)
    learner = FaultTolerantLearner(config, started.learner, stalls, started.deaths, rollouts.sample_again)
    facts = await learner.facts()
    objective = build_objective(config.objective, math.prod(facts.latent_shape))
    if inputs.recording:
        inputs.recording.check(facts.steps_fingerprint, facts.latent_shape, facts.base, objective.needs)
    for note in (*beginning.notes, *going_on(config, beginning, session.reached)):
        observer.note(note)
    observer.explain(objective.statistics)
    recorder = TrajectoryWriter(config.run_folder / RECORDING_FOLDER, base=facts.base)
    parts = Parts(
        learner=learner,
        rollouts=rollouts,
        source=OfflineSource(inputs.recording)
        if inputs.recording
        else OnlineSource(config, stream, rollouts, objective.needs.reference, objective.needs.steps),
        evaluator=Evaluator(
            config, rollouts, choose_prompts(config, stream, inputs.unseen), observer.group_scored
        ),
        observer=observer,
        stop=session.stop,
        faults=FaultCounter(started.pool, started.rewards, rollouts, started.deaths),
        keeper=keeper,
        guards=Guards.open(config, observer, partial(newest_checkpoint, config), beginning.epoch),
        recorder=recorder if config.data.record else None,
        advantages=Advantages(objective),
    )
    state = RunState(
        beginning.run_id,
        beginning.epoch,
        observer.tracker_run,
        forked_from=beginning.forked_from,
        inputs=beginning.inputs,
        changes=beginning.changes,
    )
    with beside(rollouts.watch(QueueGauges(instruments, lambda: learner.waiting), learner.in_work)):
        await Training(config, state, parts).run(beginning)
