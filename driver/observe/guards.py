"""The guards of a run: bad numbers stop it when they go on, signs of divergence raise an alarm.

consumes: update reports, an epoch's groups and metrics. produces: alarms as metrics, notes and tags; saved
groups; BadNumbersError. waits for: object store reads of groups that are saved. unblocked by: the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from common.config.schema import Config
from common.errors import BadNumbersError, RecordingError
from common.trajectory import ScoredGroup
from driver.observe.alarms import ALARMS, EpochSigns, judge
from driver.observe.epoch_metrics import Reports
from driver.observe.guard_history import load_history, save_history, shortened
from driver.run.recordings import INSPECTION, TrajectoryWriter
from learner.report import BadGroup, Outcome

FOLDER = "inspection"
SAVED_FILES = 10
SAVED_GROUPS = 16


class Witness(Protocol):
    """Whoever shows and keeps what the guards say: the run's Observer."""

    def note(self, text: str) -> None:
        """Something a person should read."""
        ...

    def alarmed(self, epoch: int, raised: Mapping[str, str], new: Sequence[str]) -> None:
        """The alarms that an epoch raised, in words by name; new: those that the one before did not raise."""
        ...


def bad_groups(reports: Reports) -> list[BadGroup]:
    """The groups that were left out, of all updates and ranks."""
    return [group for update in reports for report in update for group in report.bad_groups]


def longest_row(before: int, outcomes: Iterable[Outcome]) -> tuple[int, int]:
    """Updates in a row that were skipped for a bad number: at the end, and at most in rows that grew here.

    before: those that came right before. An update with nothing to learn neither counts nor ends a row.
    """
    row, longest = before, 0
    for outcome in outcomes:
        row = 0 if outcome is Outcome.APPLIED else row + outcome.is_bad
        longest = max(longest, row) if outcome.is_bad else longest
    return row, longest


class Guards:
    """Told of each epoch; raises alarms, and stops a run that has no sound numbers any more."""

    def __init__(
        self,
        config: Config,
        witness: Witness,
        newest_checkpoint: Callable[[int], str],
        history: Mapping[int, EpochSigns],
    ) -> None:
        self._config = config
        self._section = config.guards
        self._folder: Path = config.run_folder / FOLDER
        self._witness = witness
        self._newest_checkpoint = newest_checkpoint
        self._history = dict(history)

    @staticmethod
    def open(
        config: Config, witness: Witness, newest_checkpoint: Callable[[int], str], finished: int
    ) -> Guards:
        """The guards of a run of which so many epochs are finished.

        newest_checkpoint: where the newest one is that is of at most so many epochs, in words. Raises
        RunFolderError.
        """
        return Guards(config, witness, newest_checkpoint, load_history(config.run_folder, finished))

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
        self._witness.note(f"epoch {epoch}: {what}.{listed}\n  {where}")
        if longest >= self._section.skipped_updates_in_a_row:
            sound = self._newest_checkpoint(self.sound_epochs(epoch - 1))
            raise BadNumbersError(
                f"{longest} updates in a row were skipped, as many as guards.skipped_updates_in_a_row = "
                f"{self._section.skipped_updates_in_a_row} allows: {bad[-1].value}.{listed}\n{where}\n"
                f"The last checkpoint from before them: {sound}. docs/operations.md says what to look at."
            )

    def after_epoch(self, epoch: int, reports: Reports, metrics: Mapping[str, float]) -> dict[str, float]:
        """The alarms of a finished epoch, as metrics. What is new is shown; all is remembered."""
        outcomes = [update[0].outcome for update in reports]
        row, _ = longest_row(self._row_before(epoch), outcomes)
        signs = EpochSigns(
            gradient_norm=metrics["optimizer/gradient_norm"],
            reward_spread=metrics["reward/within_group_std"],
            bad_updates=sum(outcome.is_bad for outcome in outcomes),
            row=row,
            mismatch=metrics["policy/log_ratio_mismatch_max"],
            clip_range=self._config.objective.clip_per_element(reports[0][0].latent_elements),
        )
        raised = judge(signs, self._history, epoch, self._section)
        before = self._history[epoch - 1].alarms if epoch - 1 in self._history else {}
        self._witness.alarmed(epoch, raised, new=[name for name in raised if name not in before])
        self._history = shortened(
            {**self._history, epoch: EpochSigns(**{**vars(signs), "alarms": raised})}, epoch
        )
        save_history(self._config.run_folder, self._history)
        return {f"alarms/{name}": float(name in raised) for name in ALARMS}

    def _row_before(self, epoch: int) -> int:
        return self._history[epoch - 1].row if epoch - 1 in self._history else 0

    def sound_epochs(self, finished: int) -> int:
        """How many of the finished epochs come before those with skipped updates that they end with."""
        sound = finished
        while sound in self._history and (self._history[sound].bad_updates or self._history[sound].row):
            sound -= 1
        return sound

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
