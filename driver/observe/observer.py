"""Everything that looks at a run: the progress display, the tracker, Ray's metrics, and the run folder's
status and evaluations."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.cluster.metrics import MetricDefinition, exact_metrics, metrics_markdown
from common.config.schema import Config
from common.stopwatch import Busy
from common.storage import replace_file
from common.trajectory import ScorerStamp
from driver.observe.display import Display, DisplayState, Phase
from driver.observe.epoch_metrics import Reports, Rewards, reward_metrics
from driver.observe.gauges import RayGauges
from driver.observe.status import StatusFile
from driver.observe.timeline_log import GroupHistory, TimelineLog
from driver.report.evaluation import Evaluation
from driver.report.images import before_after_grid
from driver.report.intervals import compare, evaluation_metrics, history
from driver.report.over_optimisation import over_optimisation
from driver.report.run_page import describe_run
from driver.report.showing import showing
from driver.report.timeline import Timeline
from driver.report.tracker import Tracker
from driver.run.evaluations import save_evaluation
from driver.run.reward_versions import VERSIONS_FILE, VersionLog

# The slash gives the images a section of their own on the run page.
GRID = "before_after/unseen prompts"
OVER_OPTIMISATION = "over_optimisation"

IDLE = {role: f"time/{role}_idle_share" for role in ("actors", "reward", "learner")}

Evaluations = tuple[Evaluation, ...]
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Outlets:
    """Where an observer shows and keeps things."""

    display: Display
    tracker: Tracker
    gauges: RayGauges
    status: StatusFile
    timelines: TimelineLog


class Observer:
    """Shows and keeps what happens in the loop. Never steers.

    finished: epochs, by this run's earlier processes; evaluations, versions: of those epochs.
    """

    def __init__(
        self,
        config: Config,
        outlets: Outlets,
        finished: int,
        evaluations: Sequence[Evaluation],
        versions: VersionLog,
    ) -> None:
        self._config = config
        self._display = outlets.display
        self._tracker = outlets.tracker
        self._gauges = outlets.gauges
        self._status = outlets.status
        self._timelines = outlets.timelines
        self._state = first_state(config, finished, evaluations)
        self._evaluations: Evaluations = tuple(evaluations)
        self._versions = versions
        self._epochs: tuple[tuple[int, dict[str, float]], ...] = ()
        # The first epoch that one version of the trained rewards scored alone, since the last swap.
        self._one_version_since = 0
        self._epoch_started = time.perf_counter()

    @property
    def evaluations(self) -> Evaluations:
        """All evaluations of the run, those before a continuation included, oldest first."""
        return self._evaluations

    @property
    def epochs(self) -> tuple[tuple[int, dict[str, float]], ...]:
        """Number and metrics of each epoch finished by this process."""
        return self._epochs

    @property
    def last_timeline(self) -> Timeline | None:
        """Of the last epoch; None where none is kept."""
        return self._timelines.last

    @property
    def versions(self) -> VersionLog:
        """Which versions of the rewards have scored."""
        return self._versions

    @property
    def tracker_run(self) -> str:
        """The tracker's id of this run, for checkpoints."""
        return self._tracker.run_id

    def has_evaluated(self, epoch: int) -> bool:
        """Whether the weights after so many epochs have been evaluated."""
        return any(evaluation.epoch == epoch for evaluation in self._evaluations)

    def rewound(self, epoch: int, why: str) -> None:
        """Epochs after `epoch` come again.

        What is known of them stays, and must come again the same. With staleness they may learn from other
        samples: then it is forgotten, and kept and logged as it comes again.
        """
        self.note(why)
        if self._config.data.max_staleness:
            epochs = tuple(known for known in self._epochs if known[0] <= epoch)
            lost = len(self._epochs) - len(epochs)
            rewards = self._state.rewards[: max(0, len(self._state.rewards) - lost)]
            self._epochs = epochs
            self._evaluations = tuple(known for known in self._evaluations if known.epoch <= epoch)
            unseen_scores = first_state(self._config, epoch, self._evaluations).unseen
            self._state = replace(self._state, rewards=rewards, unseen=unseen_scores)
        self._show(replace(self._state, epoch=epoch))

    def phase(self, phase: Phase, total: int, unit: str = "images") -> None:
        """Something new is being done, `total` units of it. The first one ends the start."""
        if self._state.phase is Phase.STARTING:
            self._epoch_started = time.perf_counter()
        self._timelines.phase(phase.value)
        self._show(replace(self._state, phase=phase, done=0, total=total, unit=unit))
        self._status.write(self._state)

    def progress(self, done: int) -> None:
        """So much of the phase is done."""
        self._show(replace(self._state, done=done))

    def explain(self, statistics: Sequence[MetricDefinition]) -> None:
        """Keep what the metrics mean, those that the objective names included."""
        self._tracker.log_text("metrics.md", metrics_markdown(statistics))

    def note(self, text: str) -> None:
        """Something a person should read."""
        self._display.note(text)

    def stop_asked(self) -> None:
        """Somebody has asked the run to stop."""
        phase, position = self._state.phase, self._state.position
        uncut = phase in (Phase.LEARNING, Phase.PUBLISHING)
        when = f"after the updates of {position}" if uncut else f"in the middle of {phase.value} ({position})"
        self.note(
            f"Stopping {when}, then a checkpoint of the last finished epoch. A second signal ends the run at "
            "once, without it."
        )

    def group_scored(self, epoch: int, group: int, scorers: Sequence[ScorerStamp]) -> None:
        """A group was scored, of the epoch that makes `epoch` finished ones or of the evaluation after it."""
        known = len(self._versions.records)
        for swap in self._versions.scored(epoch, group, scorers):
            if swap.name in self._config.rewards:
                self._one_version_since = epoch + 1
            self.note(f"epoch {epoch}, group {group}: {swap}")
            self._tracker.set_tags({f"reward_swap/{swap.name}/{swap.index}": f"epoch {epoch}: {swap}"})
        if len(self._versions.records) > known:
            self._versions.save(self._config.run_folder)
            self._tracker.log_text(VERSIONS_FILE, self._versions.to_json())

    def alarmed(self, epoch: int, raised: Mapping[str, str], new: Sequence[str]) -> None:
        """The alarms that an epoch raised, in words by name; new: those that the one before did not raise."""
        for name in new:
            self.note(f"ALARM {name}, epoch {epoch}: {raised[name]}")
            self._tracker.set_tags({f"alarms/{name}": f"epoch {epoch}: {raised[name]}"})
        self._show(replace(self._state, alarms=tuple(raised)))

    def epoch_worked(
        self, epoch: int, work: Busy, histories: Sequence[GroupHistory], reports: Reports
    ) -> None:
        """Who worked when in an epoch; work: the driver's own time. histories: of groups since the last."""
        self._timelines.epoch_done(epoch, work, histories, reports)

    def epoch_done(self, epoch: int, epoch_metrics: Metrics) -> None:
        """An epoch is finished and its weights are published."""
        indices = self._versions.indices()
        marks = {f"reward_version/{name}": float(index) for name, index in indices.items()}
        metrics = {**epoch_metrics, **marks}
        if epoch in dict(self._epochs):
            self._show(replace(self._state, epoch=epoch))
            self._compare(f"Epoch {epoch}", exact_metrics(dict(self._epochs)[epoch]), exact_metrics(metrics))
            return
        self._epochs = (*self._epochs, (epoch, metrics))
        self._tracker.log_metrics(metrics, epoch)
        self._gauges.publish(metrics)
        now = time.perf_counter()
        comparable = self._state.rewards if epoch > self._one_version_since else ()
        self._show(
            replace(
                self._state,
                epoch=epoch,
                rewards=(*comparable, metrics["reward/mean"]),
                images_per_s=metrics["throughput/images_per_s"],
                epoch_seconds=(*self._state.epoch_seconds, now - self._epoch_started),
                dropped=self._state.dropped + int(metrics["faults/dropped_groups"]),
                kl=metrics.get("policy/kl_to_reference"),
                idle=tuple((role, metrics[name]) for role, name in IDLE.items() if name in metrics),
            )
        )
        self._epoch_started = now

    def evaluated(self, evaluation: Evaluation, rewards: Rewards, seconds: float) -> None:
        """A policy version has been evaluated. rewards: what each did meanwhile, by name."""
        known = {known.epoch: known for known in self._evaluations}
        if evaluation.epoch in known:
            what = f"The evaluation after epoch {evaluation.epoch}"
            self._compare(what, evaluation_metrics(known[evaluation.epoch]), evaluation_metrics(evaluation))
            return
        self._evaluations = (*self._evaluations, evaluation)
        save_evaluation(self._config.run_folder, evaluation)
        hacked = over_optimisation(self._evaluations, tuple(self._config.gold))
        if hacked:
            self.note(f"ALARM {OVER_OPTIMISATION}, epoch {evaluation.epoch}: {hacked}")
            self._tracker.set_tags({f"alarms/{OVER_OPTIMISATION}": f"epoch {evaluation.epoch}: {hacked}"})
        metrics = {
            **evaluation_metrics(evaluation),
            f"alarms/{OVER_OPTIMISATION}": float(bool(hacked)),
            # Those of the others stand at this step already, as the epoch's.
            **reward_metrics(rewards, self._config.gold),
            "time/evaluation_s": seconds,
        }
        self._tracker.log_metrics(metrics, evaluation.epoch)
        self._gauges.publish(metrics)
        with showing("The images before and after", self.note):
            self._show_grid(evaluation)
        with showing("The comparison on the run's page", self.note):
            page = describe_run(
                self._config, evaluation.epoch, compare(self._evaluations), self.tracker_run, [f"{GRID}.png"]
            )
            self._tracker.set_description(page)
        name = self._state.unseen_name
        self._show(replace(self._state, unseen=history(self._evaluations, "unseen", name)))

    def _show_grid(self, evaluation: Evaluation) -> None:
        grid = before_after_grid(first_alike(self._evaluations).unseen, evaluation.unseen)
        self._tracker.log_image(GRID, grid, evaluation.epoch)
        packed = io.BytesIO()
        grid.save(packed, "PNG")
        replace_file(grid_file(self._config), packed.getvalue())

    def _compare(self, what: str, first: Metrics, second: Metrics) -> None:
        """What was done again has been logged already; it is only checked that it came out the same."""
        different = [name for name in {*first, *second} if first.get(name) != second.get(name)]
        if different:
            self.note(f"{what} was done again and came out differently: {', '.join(sorted(different))}.")

    def _show(self, state: DisplayState) -> None:
        self._state = state
        self._display.update(self._state)


def first_alike(evaluations: Evaluations) -> Evaluation:
    """The first one of the unseen prompts that the last one evaluated."""
    last = evaluations[-1].unseen
    return next(one for one in evaluations if last.same_prompts(one.unseen))


def shown_score(config: Config) -> str:
    """The score that the display shows of unseen prompts: the first gold reward, or the trained sum without
    one."""
    return next(iter(config.gold), "reward")


def first_charts(config: Config) -> dict[str, str]:
    """Names that put what is looked at first at the top of the run's page, by the metric that it is.

    The page sorts sections, and charts in a section, by name.
    """
    score = shown_score(config)
    return {
        "reward/mean": "1 progress/1 reward in training",
        f"eval/unseen/{score}": f"1 progress/2 {score} on unseen prompts",
        "throughput/images_per_s": "1 progress/3 images per second",
    }


def first_state(config: Config, finished: int, evaluations: Sequence[Evaluation]) -> DisplayState:
    """What the display shows at the start."""
    name = shown_score(config)
    means = history(evaluations, "unseen", name)
    return DisplayState(epoch=finished, epochs=config.run.epochs, unseen=means, unseen_name=name)


def grid_file(config: Config) -> Path:
    """Where the newest before/after grid is written."""
    return config.run_folder / "before_after.png"
