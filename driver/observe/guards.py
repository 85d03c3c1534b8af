"""The guards of a run: bad numbers stop it when they go on, signs of divergence raise an alarm.

consumes: update reports, an epoch's groups and metrics. produces: alarms as metrics, notes and tags; saved
groups; BadNumbersError. waits for: object store reads of groups that are saved. unblocked by: the store.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

from common.config.safety import GuardsSection
from common.config.schema import Config
from common.errors import BadNumbersError, NothingLearnedError, RecordingError
from common.records import read_record
from common.storage import replace_file
from common.trajectory import ScoredGroup
from driver.observe.epoch_metrics import Reports
from driver.observe.observer import Observer
from driver.run.recordings import INSPECTION, TrajectoryWriter
from learner.report import BadGroup, UpdateOutcome

FOLDER = "inspection"
HISTORY_FILE = "guards.json"
SAVED_FILES = 10
SAVED_GROUPS = 16
KEPT_EPOCHS = 500
RECENT_EPOCHS = 20
FIRST_EPOCHS = 5
"""Epochs that give a spread to compare with; and as many before a gradient norm is judged."""
ALARMS = ("bad_numbers", "gradient_norm", "log_prob_mismatch", "nothing_learned", "reward_spread")


@dataclass(frozen=True)
class EpochSigns:
    """What is remembered of an epoch.

    bad_updates: of the epoch. row: updates skipped for a bad number since the last one that was made.
    idle: why nothing was learned; empty where something was, and where numbers were not finite. idle_row:
    epochs in a row, this one included, in which nothing was. alarms: those that the epoch raised, in words by
    name.
    """

    gradient_norm: float
    reward_spread: float
    bad_updates: int
    row: int
    idle: str = ""
    idle_row: int = 0
    alarms: dict[str, str] = field(default_factory=dict)


History = Mapping[int, EpochSigns]
"""By number of the epoch, from 1."""


def bad_numbers_alarm(signs: EpochSigns) -> str | None:
    """Why an epoch with skipped updates is one to look at."""
    count = signs.bad_updates
    return f"{count} updates skipped, because a number was not finite" if count else None


def why_idle(reports: Reports, tied: bool, weights_changed: bool) -> str:
    """Why an epoch has taught nothing; empty where it has. tied: no rewards differ."""
    first = [update[0] for update in reports]
    if any(report.outcome.is_bad for report in first):
        return ""
    if tied or all(report.outcome is UpdateOutcome.NOTHING_TO_LEARN for report in first):
        return "no image got another reward than those it is compared with, beyond rounding"
    if all(report.gradient_norm == 0.0 for report in first):
        return "the gradient was exactly 0: no loss reaches the trained weights, or all of it is clipped"
    return (
        ""
        if weights_changed
        else "the weights are the same to the bit: the learning rate is too small for them"
    )


def gradient_norm_alarm(norm: float, earlier: Sequence[float], factor: float) -> str | None:
    """Why the norm is too large against those of earlier epochs, the last one last; None where it is not."""
    known = [value for value in earlier if math.isfinite(value)][-RECENT_EPOCHS:]
    if len(known) < FIRST_EPOCHS or not math.isfinite(norm):
        return None
    usual = statistics.median(known)
    if not usual > 0 or norm <= factor * usual:
        return None
    return f"gradient norm {norm:.3g}, {norm / usual:.3g} times the median of the last {len(known)} epochs"


def mismatch_alarm(mismatch: float, clip_range: float) -> str | None:
    """How actors and learner disagree by more than the clip allows the policy to move; None where they do
    not. With staleness the clip compares the one's log-probs with the other's. Both numbers in nats per
    latent element."""
    if not mismatch > clip_range:
        return None
    return (
        f"the learner's log-probs differ from the actors' by up to {mismatch:.3g} nats per element at "
        f"unchanged weights, more than the clip range of {clip_range:.3g}, so with data.max_staleness the "
        "clip would act on rounding alone: use a higher model.precision or a larger objective.clip_range"
    )


def spread_alarm(spread: float, first: Sequence[float], share: float) -> str | None:
    """Why rewards spread too little against the run's first epochs; None where they do not."""
    if len(first) < FIRST_EPOCHS:
        return None
    usual = statistics.median(first[:FIRST_EPOCHS])
    if not usual > 0 or not spread < share * usual:
        return None
    return (
        f"rewards of a prompt's images spread by {spread:.3g}, {spread / usual:.2g} of the median of the "
        f"first {FIRST_EPOCHS} epochs"
    )


def judge(signs: EpochSigns, history: History, epoch: int, section: GuardsSection) -> dict[str, str]:
    """The alarms that an epoch raises by itself and against those before it, in words by name."""
    norms = [history[number].gradient_norm for number in sorted(history) if number < epoch]
    spreads = [history[number].reward_spread for number in range(1, FIRST_EPOCHS + 1) if number in history]
    first = spreads if epoch > FIRST_EPOCHS else []
    found = {
        "bad_numbers": bad_numbers_alarm(signs),
        "nothing_learned": signs.idle,
        "gradient_norm": gradient_norm_alarm(signs.gradient_norm, norms, section.gradient_norm_factor),
        "reward_spread": spread_alarm(signs.reward_spread, first, section.spread_share),
    }
    return {name: text for name, text in found.items() if text}


def save_history(run_folder: Path, history: History) -> None:
    """Write it, whole or not at all. Raises RunFolderError where the folder cannot be written."""
    text = json.dumps({epoch: asdict(signs) for epoch, signs in history.items()}, indent=1)
    replace_file(run_folder / HISTORY_FILE, text.encode())


def load_history(run_folder: Path, epochs: int) -> dict[int, EpochSigns]:
    """What was known after so many epochs of the run in a folder. Raises RunFolderError."""
    if not epochs:
        return {}
    known = read_record(run_folder / HISTORY_FILE, dict[int, EpochSigns], "Delete it to go on without it.")
    return {epoch: signs for epoch, signs in (known or {}).items() if epoch <= epochs}


def bad_groups(reports: Reports) -> list[BadGroup]:
    """The groups that were left out, of all updates and ranks."""
    return [group for update in reports for report in update for group in report.bad_groups]


def longest_row(before: int, outcomes: Iterable[UpdateOutcome]) -> tuple[int, int]:
    """Updates in a row that were skipped for a bad number: at the end, and at most in rows that grew here.

    before: those that came right before. An update with nothing to learn neither counts nor ends a row.
    """
    row, longest = before, 0
    for outcome in outcomes:
        row = 0 if outcome is UpdateOutcome.APPLIED else row + outcome.is_bad
        longest = max(longest, row) if outcome.is_bad else longest
    return row, longest


class Guards:
    """Looks at each epoch; raises alarms, and stops a run that has no sound numbers any more.

    newest_checkpoint: where the newest one is that is of at most so many epochs, in words.
    """

    def __init__(
        self, config: Config, observer: Observer, newest_checkpoint: Callable[[int], str], history: History
    ) -> None:
        self._config = config
        self._folder = config.run_folder / FOLDER
        self._observer = observer
        self._newest_checkpoint = newest_checkpoint
        self._history = dict(history)

    @staticmethod
    def open(
        config: Config, observer: Observer, newest_checkpoint: Callable[[int], str], finished: int
    ) -> Guards:
        """The guards of a run of which so many epochs are finished. Raises RunFolderError."""
        return Guards(config, observer, newest_checkpoint, load_history(config.run_folder, finished))

    def check_updates(self, epoch: int, reports: Reports, groups: Iterable[ScoredGroup]) -> None:
        """Look at the updates of the epoch that makes `epoch` finished ones.

        groups: the epoch's, fetched only where some are saved. Raises BadNumbersError where
        guards.skipped_updates_in_a_row were skipped for numbers that are not finite.
        """
        outcomes = [update[0].outcome for update in reports]
        bad = [outcome for outcome in outcomes if outcome.is_bad]
        if not bad:
            return
        _, longest = longest_row(self._row_before(epoch), outcomes)
        named = bad_groups(reports)
        what = f"{len(bad)} of {len(outcomes)} updates skipped: {bad[0].value}"
        listed = "".join(f"\n  {group}" for group in named[:SAVED_GROUPS])
        where = self._save(epoch, named, groups)
        self._observer.note(f"epoch {epoch}: {what}.{listed}\n  {where}")
        most = self._config.guards.skipped_updates_in_a_row
        if longest >= most:
            sound = self._newest_checkpoint(self.sound_epochs(epoch - 1))
            raise BadNumbersError(
                f"{longest} updates in a row were skipped, as many as guards.skipped_updates_in_a_row = "
                f"{most} allows: {bad[-1].value}.{listed}\n{where}\n"
                f"The last checkpoint from before them: {sound}. docs/operations.md says what to look at."
            )

    def check_learning(self, epoch: int) -> None:
        """Raise NothingLearnedError where guards.epochs_without_learning in a row, up to this one, taught
        nothing. After `after_epoch`."""
        signs, most = self._history[epoch], self._config.guards.epochs_without_learning
        if signs.idle_row >= most:
            raise NothingLearnedError(
                f"Nothing was learned in {signs.idle_row} epochs in a row, as many as "
                f"guards.epochs_without_learning = {most} allows: {signs.idle}. docs/operations.md says what "
                "to look at."
            )

    def after_epoch(
        self,
        epoch: int,
        reports: Reports,
        metrics: Mapping[str, float],
        tied: bool = False,
        weights_changed: bool = True,
    ) -> dict[str, float]:
        """The alarms of a finished epoch, as metrics. What is new is shown; all is remembered.

        tied: no rewards differ that are compared with each other. weights_changed: since the epoch before.
        """
        outcomes = [update[0].outcome for update in reports]
        row, _ = longest_row(self._row_before(epoch), outcomes)
        idle, earlier = why_idle(reports, tied, weights_changed), self._history.get(epoch - 1)
        signs = EpochSigns(
            gradient_norm=metrics["optimizer/gradient_norm"],
            reward_spread=metrics["reward/within_group_std"],
            bad_updates=sum(outcome.is_bad for outcome in outcomes),
            row=row,
            idle=idle,
            idle_row=earlier.idle_row + 1 if idle and earlier else int(bool(idle)),
        )
        raised = judge(signs, self._history, epoch, self._config.guards)
        clip_range = self._config.objective.clip_per_element(reports[0][0].latent_elements)
        if mismatch := mismatch_alarm(metrics["policy/log_ratio_mismatch_max"], clip_range):
            raised["log_prob_mismatch"] = mismatch
        before = self._history[epoch - 1].alarms if epoch - 1 in self._history else {}
        self._observer.alarmed(epoch, raised, new=[name for name in raised if name not in before])
        self._history[epoch] = replace(signs, alarms=raised)
        for forgotten in range(FIRST_EPOCHS + 1, epoch - KEPT_EPOCHS + 1):
            self._history.pop(forgotten, None)
        save_history(self._config.run_folder, self._history)
        return {f"alarms/{name}": float(name in raised) for name in ALARMS}

    def sound_epochs(self, finished: int) -> int:
        """How many of the finished epochs come before those with skipped updates that they end with."""
        sound = finished
        while sound in self._history and (self._history[sound].bad_updates or self._history[sound].row):
            sound -= 1
        return sound

    def _row_before(self, epoch: int) -> int:
        return self._history[epoch - 1].row if epoch - 1 in self._history else 0

    def _save(self, epoch: int, named: Sequence[BadGroup], groups: Iterable[ScoredGroup]) -> str:
        """Write the groups that are to blame, or where none is, the epoch's first. Returns what was done."""
        try:
            chosen = list(islice(_chosen(named, groups), SAVED_GROUPS))
            path = TrajectoryWriter(self._folder, INSPECTION).write_epoch(epoch, chosen)
            for older in sorted(self._folder.glob("epoch_*.parquet"))[:-SAVED_FILES]:
                older.unlink()
        except (RecordingError, OSError) as error:
            return f"The groups could not be saved: {error}."
        return f"{len(chosen)} groups are saved in {path}."


def _chosen(named: Sequence[BadGroup], groups: Iterable[ScoredGroup]) -> Iterator[ScoredGroup]:
    keys = {group.noise for group in named}
    return (group for group in groups if not keys or group.trajectory.noise in keys)
