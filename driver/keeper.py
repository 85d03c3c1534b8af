"""Checkpoints beside the training: one written at a time in the background, the right ones kept.

consumes: the learner's files, evaluations. produces: checkpoints. waits for: the disk or the store, only
where a second checkpoint comes before the first is written, and at the end. unblocked by: the thread that
writes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from common.config.schema import Config
from common.evaluation import Evaluation
from driver.writing import Writing
from learner.checkpoint import Checkpoints, RunState


def best_epochs(golds: Mapping[int, float], count: int) -> list[int]:
    """The `count` epochs of the highest gold score, best first; of equal ones the earlier."""
    return sorted(golds, key=lambda epoch: (-golds[epoch], epoch))[:count]


def kept_epochs(
    written: Collection[int], last: int, keep: int, keep_best: int, golds: Mapping[int, float]
) -> set[int]:
    """Which checkpoints stay, after that of epoch `last` was written.

    That one, the `keep` before it, and the `keep_best` best that there are. One of a later epoch is left from
    before the run went back to an earlier checkpoint: it stays, and is replaced when the run comes by.
    """
    there = sorted(epoch for epoch in written if epoch <= last)
    later = {epoch for epoch in written if epoch > last}
    scored = {epoch: gold for epoch, gold in golds.items() if epoch in there}
    return {*there[-(keep + 1) :], *best_epochs(scored, keep_best), *later}


def gold_score(evaluation: Evaluation, golds: Collection[str]) -> float:
    """Mean over the gold rewards of their means on unseen prompts. golds: their names, at least one."""
    (unseen,) = (own for own in evaluation.sets if own.name == "unseen")
    return float(np.mean([unseen.scores[name].mean() for name in golds]))


class Keeper:
    """Writes a run's checkpoints. Owned by one thread. A context: at its end all is written.

    forked_from: the checkpoint that the run began with, see RunState.
    """

    def __init__(self, config: Config, checkpoints: Checkpoints, forked_from: str) -> None:
        self._section = config.checkpoint
        self._gold_names = tuple(config.gold)
        self._forked_from = forked_from
        self._checkpoints = checkpoints
        self._golds: dict[int, float] = {}
        self._in_work: tuple[Writing, ...] = ()
        self._written: tuple[int, ...] = ()

    @staticmethod
    def open(config: Config, evaluations: Sequence[Evaluation], forked_from: str) -> Keeper:
        """The keeper of the configured run. evaluations: those before a continuation."""
        keeper = Keeper(config, Checkpoints.of(config), forked_from)
        for evaluation in evaluations:
            keeper.after_evaluation(evaluation)
        return keeper

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C a second time ends the run at once: what is being written is left unfinished.
        if kind is not KeyboardInterrupt:
            self.finish()

    def save(self, state: RunState, config_yaml: str, files: Mapping[str, bytes]) -> None:
        """Begin to write a checkpoint, and return; waits first where an earlier one is still being written.

        Raises CheckpointError where that one could not be written, StuckError where it takes too long.
        """
        self.wait()
        whole, golds = replace(state, forked_from=self._forked_from), dict(self._golds)

        def write() -> None:
            self._checkpoints.write(whole, config_yaml, files)
            self._prune(whole.epoch, golds)

        what = f"the checkpoint {self._checkpoints.where(state.epoch)} to be written"
        self._in_work = (Writing(write, what).start(),)
        self._written = (state.epoch,)

    def check(self) -> None:
        """Raise CheckpointError where the checkpoint in work has failed meanwhile. Does not wait."""
        if not any(writing.running for writing in self._in_work):
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises CheckpointError, StuckError."""
        in_work, self._in_work = self._in_work, ()
        for writing in in_work:
            writing.wait(self._section.timeout_s)

    def after_evaluation(self, evaluation: Evaluation) -> bool:
        """Note an evaluation; whether its policy belongs to the best, and so should be saved.

        The policy that a run begins with, at epoch 0, is not counted: it is no work of the run.
        """
        if not self._gold_names or not evaluation.epoch:
            return False
        self._golds[evaluation.epoch] = gold_score(evaluation, self._gold_names)
        return evaluation.epoch in best_epochs(self._golds, self._section.keep_best)

    def finish(self) -> None:
        """Wait, and delete what the evaluations since the last write made superfluous."""
        self.wait()
        for last in self._written:
            self._prune(last, self._golds)

    def _prune(self, last: int, golds: Mapping[int, float]) -> None:
        section, written = self._section, self._checkpoints.epochs()
        self._checkpoints.prune(kept_epochs(written, last, section.keep, section.keep_best, golds))
