"""The learner as the loop sees it: it survives the death of its processes, and learns the same bits again.

consumes: scored groups. produces: update reports, published weights, the files of a checkpoint.
waits for: the learner's ranks, by way of Rollouts, so that groups move on meanwhile. unblocked by: the ranks.

Since the last snapshot the groups of every epoch are kept, so a learner that died is started anew, restored
from the snapshot and given the same groups in the same order. What it publishes must be what it published
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, TypeVar

import ray

from common.config.schema import Config
from common.errors import StuckError, WeightsError
from common.trajectory import PolicyStamp
from driver.loop.arrivals import Arrivals, only_told
from driver.loop.learner_calls import GroupLost, LearnerCalls, LearnerLost, RewindNeeded
from driver.loop.learner_deaths import LearnerDeaths
from driver.loop.learner_records import Base, KeptEpoch
from driver.loop.published import Published, WeightsRecord
from driver.loop.rollouts import Rollouts
from driver.loop.source import Group
from driver.observe.display import Phase
from driver.observe.observer import Observer
from learner.group import LearnerGroup
from learner.report import LearnerFacts, UpdateReport
from learner.state import Files

Result = TypeVar("Result")
Reports = list[list[UpdateReport]]

LOST_TRIES = 5
"""How often the groups of one epoch may be lost with their nodes while the learner takes them in."""


class FaultTolerantLearner:
    """One learner for the whole run, whatever becomes of its processes. deaths: counts theirs."""

    def __init__(
        self,
        config: Config,
        group: LearnerGroup,
        rollouts: Rollouts,
        observer: Observer,
        deaths: LearnerDeaths,
    ) -> None:
        self._config = config
        self._group = group
        self._calls = LearnerCalls(group, rollouts, config.learner.timeout_s)
        self._observer = observer
        self._base = Base(0, (), ())
        self._offered: tuple[Base, ...] = ()
        self._log: list[KeptEpoch] = []
        self._pending: dict[ray.ObjectRef, int] = {}
        self._taken_in: Arrivals[ray.ObjectRef] = Arrivals(only_told)
        self._finished = 0
        self._updating = False
        self._record = WeightsRecord()
        # As long as no rank has said so.
        self._is_exact = False
        self._nbytes = 0
        self._deaths = deaths

    def facts(self) -> LearnerFacts:
        """What trajectories must fit; waits until the model is loaded."""
        found: LearnerFacts = self._steadily(lambda: self._calls.wait(self._group.ready(), "the learner"))[0]
        return found

    def begin(self, epoch: int, files: Mapping[str, bytes]) -> Published:
        """Stand where `epoch` epochs are finished, and publish. files: of the checkpoint; none = pretrained.

        The ranks must be as they were started: new, or restarted by `restart`.
        """
        self._base = Base(epoch, (ray.put(dict(files)),) if files else (), ())
        self._offered, self._log, self._pending = (), [], {}
        self._finished, self._updating = epoch, False
        if self._config.data.max_staleness or not self._is_exact:
            # The queue is lost with what went before, or sums differ from time to time: the epochs to come
            # may differ from those known.
            self._record.forget_after(epoch)
        published = self._steadily(self._rebuild)
        self._offer_snapshot()
        return published

    def restart(self) -> None:
        """End the ranks and start new ones, to `begin` with."""
        self._group.restart()

    def begin_epoch(self) -> None:
        """Groups from now on are of the next epoch."""
        self._log.append(KeptEpoch())
        self._pending = {}

    def take_in(self, group: Group) -> None:
        """Hand over the epoch's next group. Does not wait, unless the learner has died."""
        groups = self._log[-1].groups
        groups.append(group)
        self._hand_over(len(groups) - 1, group)
        self._accept_snapshot(wait=False)
        self._steadily(self._look)

    def finish_epoch(self) -> tuple[Reports, Published]:
        """K updates on the epoch's groups, then the new weights."""
        # At most one snapshot is under way, so that the groups of two epochs are kept and no more. Waited for
        # before the updates: after them nothing may fail, or nobody knows which epoch the weights are of.
        self._accept_snapshot(wait=True)
        found = self._steadily(self._finish_once)
        self._log[-1].learned = True
        self._finished += 1
        self._updating = False
        self._offer_snapshot()
        return found

    def export(self) -> Files:
        """The files of a checkpoint after the epochs finished so far. Only between updates."""
        files: Files = self._steadily(
            lambda: self._calls.wait([self._group.export_state()], "the learner's state for a checkpoint")
        )[0]
        return files

    def rescue(self) -> Files:
        """`export` where something is stuck: from the live learner where it answers, else from a new one."""
        if not self._updating:
            with suppress(StuckError):
                return self.export()
        self._log = [entry for entry in self._log if entry.learned]
        self._updating = False
        self._check_kept("something is stuck")
        self._group.restart()
        self._steadily(self._rebuild)
        return self.export()

    def _finish_once(self) -> tuple[Reports, Published]:
        observer, group = self._observer, self._group
        self._settle(self._log[-1])
        self._updating = True
        reports = [self._calls.wait(group.finish_update(), "the learner's update 1")]
        for update in range(2, self._config.objective.updates_per_epoch + 1):
            reports.append(self._calls.wait(group.repeat_update(), f"the learner's update {update}"))
            observer.progress(update)
        self._calls.wait(group.end_epoch(), "the learner to end the epoch")
        observer.phase(Phase.PUBLISHING, 0)
        return reports, self._publish(self._finished + 1)

    def _publish(self, epoch: int) -> Published:
        """The ranks' weights, which must be those on record for that number of finished epochs."""
        references = self._group.publish()
        stamps = self._calls.wait(references.stamps, "the learner to publish its weights")
        if not self._record.agrees(epoch, stamps):
            self._refuse(epoch, stamps[0])
        return Published(references.weights, stamps[0], self._nbytes)

    def _refuse(self, epoch: int, found: PolicyStamp) -> NoReturn:
        """Weights that were made again are others. Raises WeightsError, RewindNeeded."""
        # Weights that are only loaded are the same on any hardware.
        if epoch > self._base.epoch and not self._is_exact:
            raise RewindNeeded(
                "the learner died, and the same groups gave other weights, as they may on this hardware"
            )
        raise WeightsError(
            f"After {epoch} epochs the weights must be {self._record.of(epoch)}, but the learner published "
            f"{found}. The same groups gave other weights: is the hardware or a library another one?"
        )

    def _hand_over(self, position: int, group: Group) -> None:
        reference = self._group.accumulate(position, group.trajectory, group.score)
        self._pending[reference] = position
        self._taken_in.watch(reference)

    def _look(self) -> None:
        """Notice a dead rank while actors still sample. Lost groups are left to _settle."""
        for reference in self._taken_in.take(0.0):
            if reference in self._pending:
                with suppress(GroupLost):
                    self._calls.wait([reference], "the learner")
                    del self._pending[reference]

    def _settle(self, entry: KeptEpoch) -> None:
        """Wait until the learner has all groups so far. Those that were lost are sampled again.

        Then all of them are handed over again, because the order of addition decides the bits.
        """
        for _ in range(LOST_TRIES):
            pending = list(self._pending.items())
            lost = [position for reference, position in pending if not self._taken(reference)]
            if not lost:
                return
            self._observer.note(f"{len(lost)} groups were lost with their node: sampled again.")
            for position in lost:
                entry.groups[position] = entry.groups[position].again()
            self._calls.wait(self._group.reset_epoch(), "the learner to begin the epoch's sum again")
            self._feed(entry)
        raise StuckError(
            f"Groups of one epoch were lost with their nodes {LOST_TRIES} times. Are nodes stable?"
        )

    def _taken(self, reference: ray.ObjectRef) -> bool:
        try:
            self._calls.wait([reference], "the learner to take in the epoch's groups")
        except GroupLost:
            return False
        del self._pending[reference]
        return True

    def _feed(self, entry: KeptEpoch) -> None:
        self._pending = {}
        for position, group in enumerate(entry.groups):
            self._hand_over(position, group)

    def _steadily(self, work: Callable[[], Result]) -> Result:
        """Do it, and again after each death of a rank. `work` must be sound after _rebuild."""
        while True:
            try:
                return work()
            except LearnerLost as loss:
                self._recover(loss)

    def _recover(self, loss: LearnerLost) -> None:
        while True:
            self._deaths.add(loss.error, self._group.nodes())
            self._check_kept(f"the learner died ({loss})")
            self._observer.note(f"The learner is started again: {loss}")
            self._group.restart()
            try:
                self._rebuild()
                return
            except LearnerLost as again:
                loss = again

    def _check_kept(self, why: str) -> None:
        """Raise RewindNeeded where the groups since the snapshot are not kept. why: they are needed."""
        if self._base.epoch + len(self._learned()) != self._finished:
            raise RewindNeeded(f"{why}, and no snapshot is kept (learner.snapshots)")

    def _learned(self) -> list[KeptEpoch]:
        return [entry for entry in self._log if entry.learned]

    def _rebuild(self) -> Published:
        """Bring newly started ranks to where the learner was: the snapshot, then the epochs since."""
        facts = self._calls.wait(self._group.ready(), "the learner to load its model")
        self._record.check_model(facts)
        self._is_exact = all(rank.is_exact for rank in facts)
        self._nbytes = facts[0].nbytes
        self._accept_snapshot(wait=False)
        learned = self._learned()
        for files in self._base.files:
            try:
                self._calls.wait(
                    self._group.restore_state(files), "the learner to take over its earlier state"
                )
            except GroupLost as loss:
                raise RewindNeeded("the snapshot was lost with its node") from loss
        published = self._publish(self._base.epoch)
        for number, entry in enumerate(learned, start=self._base.epoch + 1):
            self._feed(entry)
            self._settle(entry)
            published = self._learn_again(number)
        for entry in self._log[len(learned) :]:
            self._feed(entry)
        return published

    def _learn_again(self, epoch: int) -> Published:
        self._calls.wait(self._group.finish_update(), "the learner's update 1")
        for update in range(2, self._config.objective.updates_per_epoch + 1):
            self._calls.wait(self._group.repeat_update(), f"the learner's update {update}")
        self._calls.wait(self._group.end_epoch(), "the learner to end the epoch")
        return self._publish(epoch)

    def _offer_snapshot(self) -> None:
        """Ask for the state after the last epoch. It becomes the base once it is there."""
        if not self._config.learner.snapshots:
            self._log = []
            return
        self._offered = (Base(self._finished, (self._group.export_snapshot(),), ()),)

    def _accept_snapshot(self, wait: bool) -> None:
        for state in self._offered:
            # Fetched to this node, so that it outlives the learner's.
            ready, _ = ray.wait(list(state.files), timeout=0, fetch_local=True)
            if not ready and not wait:
                return
            self._offered = ()
            # Where it was lost, the one before it stays the base.
            with suppress(LearnerLost, GroupLost):
                held = self._calls.wait(list(state.files), "the learner's snapshot")
                self._log = self._log[state.epoch - self._base.epoch :]
                self._base = replace(state, held=tuple(held))
