"""Checkpoints beside the training: one written at a time in the background, the right ones kept.

consumes: the learner's files, evaluations. produces: checkpoints. waits for: the disk or the store, only
where a second checkpoint comes before the first is written, and at the end. unblocked by: the thread that
writes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from common.config.schema import Config
from common.errors import CheckpointError, PrdpError, StuckError
from common.storage import Content
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.run.checkpoints import Checkpoints, RunState
from driver.stalls import StallReporter
from driver.stop import StopRequested

WAIT_SLICE_S = 1.0


def best_epochs(golds: Mapping[int, float], count: int) -> list[int]:
    """The `count` epochs of the highest gold score, best first; of equal ones the earlier."""
    return sorted(golds, key=lambda epoch: (-golds[epoch], epoch))[:count]


def kept_epochs(
    written: Collection[int], last: int, keep: int, keep_best: int, golds: Mapping[int, float], sound: int
) -> set[int]:
    """Which checkpoints stay, after that of epoch `last` was written.

    That one, the `keep` before it, the `keep_best` best that there are, and the newest of at most `sound`
    epochs. One of a later epoch is left from before the run went back to an earlier checkpoint: it stays, and
    is replaced when the run comes by.
    """
    there = sorted(epoch for epoch in written if epoch <= last)
    later = {epoch for epoch in written if epoch > last}
    scored = {epoch: gold for epoch, gold in golds.items() if epoch in there}
    newest_sound = [epoch for epoch in there if epoch <= sound][-1:]
    return {*there[-(keep + 1) :], *best_epochs(scored, keep_best), *newest_sound, *later}


def gold_score(evaluation: Evaluation, golds: Collection[str]) -> float:
    """Mean over the gold rewards of their means on unseen prompts. golds: their names, at least one."""
    return float(np.mean([evaluation.unseen.scores[name].mean() for name in golds]))


class CheckpointManager:
    """Writes a run's checkpoints. Owned by one thread. A context: at its end all is written.

    begun_with: state of the checkpoint that the run goes on from. evaluations: those before a continuation
    that the run folder has. note: shows a person a line.
    """

    def __init__(
        self,
        config: Config,
        begun_with: RunState | None,
        evaluations: Sequence[Evaluation],
        note: Callable[[str], None],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._section = config.checkpoint
        self._gold_names = tuple(config.gold)
        self._checkpoints = checkpoints or Checkpoints.of(config)
        self._note = note
        self._golds = dict(begun_with.golds) if begun_with else {}
        self._measured: PromptSetEvaluation | None = None
        self._in_work: BackgroundWrite | None = None
        # Of the last checkpoint: its epoch, and the epochs that were sound then.
        self._written: tuple[int, int] | None = None
        for evaluation in evaluations:
            self.after_evaluation(evaluation)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C a second time ends the run at once: what is being written is left unfinished.
        if kind is KeyboardInterrupt:
            return
        try:
            self.finish()
        except PrdpError as error:
            if kind in (None, StopRequested):
                raise
            # It must not take the place of the error that ends the run.
            self._note(str(error))

    def save(self, state: RunState, config_yaml: str, files: Mapping[str, Content], sound: int) -> None:
        """Begin to write a checkpoint, and return; waits first where an earlier one is still being written.

        sound: the newest checkpoint of at most so many epochs stays, whatever the others are. Raises
        CheckpointError where the earlier one could not be written, StuckError where it takes too long: two
        are never written at a time.
        """
        self.wait()
        golds = {epoch: gold for epoch, gold in self._golds.items() if epoch <= state.epoch}
        whole = replace(state, golds=tuple(sorted(golds.items())))

        def write() -> None:
            self._checkpoints.write(whole, config_yaml, files)
            self._prune(whole.epoch, sound, golds)

        what = f"the checkpoint {self._checkpoints.where(state.epoch)} to be written"
        self._in_work = BackgroundWrite(write, what, self._section.timeout_s)
        self._written = (state.epoch, sound)

    def check(self) -> None:
        """Raise what the checkpoint in work has failed with meanwhile. Does not wait."""
        if self._in_work is None or not self._in_work.running:
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises CheckpointError, once; StuckError, as long as it is so."""
        writing = self._in_work
        if writing is None:
            return
        stalls = StallReporter(self._note)
        writing.wait(lambda: stalls.look(lambda: [f"the run waits for {writing.what}"]))
        self._in_work = None
        writing.check()

    def after_evaluation(self, evaluation: Evaluation) -> bool:
        """Note an evaluation; whether its policy belongs to the best, and so should be saved.

        The policy that a run begins with, at epoch 0, is not counted: it is no work of the run. Those before
        a change of a gold reward or of the prompts are forgotten: later ones cannot be compared with them.
        """
        if not self._gold_names or not evaluation.epoch:
            return False
        unseen = evaluation.unseen
        if not set(self._gold_names) <= unseen.scores.keys():
            # It is of before a change of `gold`, as are those whose scores a checkpoint holds.
            self._golds.clear()
            return False
        earlier, self._measured = self._measured, unseen
        if earlier and any(unseen.why_not_like(earlier, name) for name in self._gold_names):
            self._golds.clear()
        self._golds[evaluation.epoch] = gold_score(evaluation, self._gold_names)
        return evaluation.epoch in best_epochs(self._golds, self._section.keep_best)

    def finish(self) -> None:
        """Wait, and delete what the evaluations since the last write made superfluous."""
        self.wait()
        if self._written is not None:
            self._prune(*self._written, self._golds)

    def _prune(self, last: int, sound: int, golds: Mapping[int, float]) -> None:
        section, written = self._section, self._checkpoints.epochs()
        self._checkpoints.prune(kept_epochs(written, last, section.keep, section.keep_best, golds, sound))


class BackgroundWrite:
    """Work in a thread of its own, begun at once. what: names it in errors. limit_s: of all waits together.

    The work may raise a PrdpError. The thread ends with the process, finished or not.
    """

    def __init__(self, work: Callable[[], None], what: str, limit_s: float) -> None:
        self._work = work
        self.what = what
        self._limit_s = limit_s
        self._waited_s = 0.0
        self._failure: PrdpError | None = None
        self._through = False
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._thread.is_alive()

    def wait(self, look: Callable[[], None]) -> None:
        """Until it is through, or has failed; `look` is called about each second. Raises StuckError."""
        while self.running and self._waited_s < self._limit_s:
            began = time.monotonic()
            self._thread.join(min(WAIT_SLICE_S, self._limit_s - self._waited_s))
            self._waited_s += time.monotonic() - began
            look()
        if self.running:
            raise StuckError(
                f"Waited {self._limit_s:.0f} s for {self.what}, in vain. Raise checkpoint.timeout_s, or "
                "look at the disk or the store."
            )

    def check(self) -> None:
        """Raise the error of work that has failed. Only after `wait`."""
        if self._failure is not None:
            raise self._failure
        if not self._through:
            raise CheckpointError(f"{self.what} ended by an error of the program, which is printed above.")

    def _run(self) -> None:
        try:
            self._work()
        except PrdpError as error:
            self._failure = error
        self._through = True
