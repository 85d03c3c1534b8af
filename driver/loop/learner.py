"""The learner as the loop sees it: it survives the death of its processes, and learns the same bits again.

consumes: scored groups. produces: update reports, published weights, the files of a checkpoint.
waits for: the learner's ranks. unblocked by: the ranks, or their death.

Since the last snapshot the groups of every epoch are kept, so a learner that died is started anew, restored
from the snapshot and given the same groups in the same order. What it publishes must be what it published
before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import ray

from common.cluster.process_failures import DeathCounter
from common.config.schema import Config
from common.errors import StuckError, WeightsError
from common.trajectory import PolicyStamp
from driver.loop.ranks import (
    Answers,
    GroupLost,
    LearnerLost,
    Published,
    RankCalls,
    RewindNeeded,
    WeightsRecord,
)
from driver.loop.rollouts import Group
from driver.stalls import StallReporter
from learner.ranks import LearnerRanks
from learner.report import LearnerFacts, UpdateReport
from learner.state import Files

Result = TypeVar("Result")
Reports = list[list[UpdateReport]]
SampleAgain = Callable[[Group], Awaitable[Group]]

EPOCH_TRIES = 5
"""How often the groups of one epoch may be lost with their nodes while the learner takes them in."""


@dataclass(frozen=True)
class _Base:
    """What a learner can be restored to. files: of a checkpoint. snapshot: one, and the weights published
    before it. Neither: the pretrained weights.

    A snapshot lies on the learner's node, and is lost with it; then epochs since the checkpoint come again.
    """

    epoch: int
    files: ray.ObjectRef | None = None
    snapshot: tuple[ray.ObjectRef, ray.ObjectRef] | None = None

    def restore(self, ranks: LearnerRanks) -> list[ray.ObjectRef]:
        """Have ranks that have just been started stand there."""
        if self.snapshot is not None:
            return ranks.restore_snapshot(*self.snapshot)
        return [] if self.files is None else ranks.restore_state(self.files)


@dataclass
class _KeptEpoch:
    """An epoch since the base: its groups in prompt order, and whether its weights are published."""

    groups: list[Group] = field(default_factory=list)
    learned: bool = False


class FaultTolerantLearner:
    """One learner for the whole run, whatever becomes of its processes.

    stalls: also tells a person of deaths. deaths: counts them. sample_again: for groups that are lost.
    """

    def __init__(
        self,
        config: Config,
        ranks: LearnerRanks,
        stalls: StallReporter,
        deaths: DeathCounter,
        sample_again: SampleAgain,
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._calls = RankCalls(ranks, stalls, config.learner.timeout_s)
        self._note = stalls.note
        self._deaths = deaths
        self._sample_again = sample_again
        self._record = WeightsRecord()
        self._base = _Base(0)
        self._snapshot: tuple[_Base, Answers] | None = None
        self._log: list[_KeptEpoch] = []
        self._handed_over = 0
        self._pending: deque[tuple[range, Answers]] = deque()
        self._finished = 0
        self._updating = False
        # As long as no rank has said so.
        self._is_exact = False
        self._nbytes = 0

    @property
    def waiting(self) -> int:
        """Groups handed over that ranks have not taken in yet."""
        return sum(len(positions) for positions, answers in self._pending if not answers.done())

    def in_work(self) -> list[str]:
        """Each rank that has not answered, in words."""
        return self._calls.in_work()

    async def facts(self) -> LearnerFacts:
        """What trajectories must fit; waits until the model is loaded."""
        found: list[LearnerFacts] = await self._with_recovery(
            lambda: self._calls.wait(self._ranks.ready(), "the learner")
        )
        return found[0]

    async def begin(self, epoch: int, files: Mapping[str, bytes]) -> Published:
        """Stand where `epoch` epochs are finished, and publish. files: of the checkpoint; none = pretrained.

        The ranks must be as they were started: new, or restarted by `restart`.
        """
        self._base = _Base(epoch, ray.put(dict(files)) if files else None)
        self._snapshot, self._log = None, []
        self._forget_waves()
        self._finished, self._updating = epoch, False
        if self._config.data.max_staleness or not self._is_exact:
            # The queue is lost with what went before, or sums differ from time to time: the epochs to come
            # may differ from those known.
            self._record.forget_after(epoch)
        published = await self._with_recovery(self._rebuild)
        self._request_snapshot(published)
        return published

    def restart(self) -> None:
        """End the ranks and start new ones, to `begin` with."""
        self._ranks.restart()

    def begin_epoch(self) -> None:
        """Groups from now on are of the next epoch."""
        self._log.append(_KeptEpoch())
        self._forget_waves()

    async def submit(self, group: Group) -> None:
        """Hand over the epoch's next group. Does not wait, unless the learner has died."""
        entry = self._log[-1]
        entry.groups.append(group)
        self._hand_over(entry, is_complete=False)
        await self._store_snapshot(wait=False)
        await self._with_recovery(self._look)

    async def finish_epoch(self, progress: Callable[[int], None]) -> tuple[Reports, Published]:
        """K updates on the epoch's groups, then the new weights. progress: told the updates made so far."""
        # At most one snapshot is under way, so that the groups of two epochs are kept and no more. Waited for
        # before the updates: after them nothing may fail, or nobody knows which epoch the weights are of.
        await self._store_snapshot(wait=True)
        found = await self._with_recovery(lambda: self._finish_once(progress))
        self._log[-1].learned = True
        self._finished += 1
        self._updating = False
        self._request_snapshot(found[1])
        return found

    async def export(self) -> Files:
        """The files of a checkpoint after the epochs finished so far. Only between updates."""
        found: list[Files] = await self._with_recovery(
            lambda: self._calls.wait([self._ranks.export_state()], "the learner's state for a checkpoint")
        )
        return found[0]

    async def rescue(self) -> Files:
        """`export` where something is stuck: from the live learner where it answers, else from a new one."""
        if not self._updating:
            with suppress(StuckError):
                return await self.export()
        self._log = [entry for entry in self._log if entry.learned]
        self._updating = False
        self._check_kept("something is stuck")
        self._ranks.restart()
        await self._with_recovery(self._rebuild)
        return await self.export()

    async def _finish_once(self, progress: Callable[[int], None]) -> tuple[Reports, Published]:
        entry = self._log[-1]
        self._hand_over(entry, is_complete=True)
        await self._wait_until_accepted(entry)
        self._updating = True
        reports = await self._update(entry, progress)
        return reports, await self._publish(self._finished + 1)

    async def _update(self, entry: _KeptEpoch, progress: Callable[[int], None]) -> Reports:
        """The epoch's K updates, once the ranks have its groups."""
        calls, waves = self._calls, len(entry.groups)
        reports = [await calls.wait(self._ranks.finish_update(), "the learner's update 1")]
        for update in range(2, self._config.objective.updates_per_epoch + 1):
            progress(update - 1)
            reports.append(
                await calls.wait(self._ranks.repeat_update(), f"the learner's update {update}", waves)
            )
        progress(len(reports))
        await calls.wait(self._ranks.end_epoch(), "the learner to end the epoch")
        return reports

    async def _publish(self, epoch: int) -> Published:
        """The ranks' weights, which must be those on record for that number of finished epochs."""
        references = self._ranks.publish()
        stamps = await self._calls.wait(references.stamps, "the learner to publish its weights")
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

    def _hand_over(self, entry: _KeptEpoch, is_complete: bool) -> None:
        """Those of the epoch's groups that have not been, in waves. is_complete: no more of them come, so
        the last wave may be small."""
        size, count = self._ranks.wave_size, len(entry.groups)
        end = count if is_complete else count - count % size
        for start in range(self._handed_over, end, size):
            wave = entry.groups[start : min(start + size, end)]
            parts = [(group.trajectory, (group.score, group.advantages)) for group in wave]
            answers = self._calls.begin(self._ranks.accumulate(parts))
            self._pending.append((range(start, start + len(wave)), answers))
        self._handed_over = end

    def _forget_waves(self) -> None:
        """The ranks have none of an epoch's groups."""
        self._pending.clear()
        self._handed_over = 0

    async def _look(self) -> None:
        """Notice a dead rank while actors still sample. Lost groups are left to _wait_until_accepted."""
        while self._pending and self._pending[0][1].done():
            try:
                await self._calls.result(self._pending[0][1], "the learner")
            except GroupLost:
                return
            self._pending.popleft()

    async def _wait_until_accepted(self, entry: _KeptEpoch) -> None:
        """Wait until the learner has all groups so far. Those that were lost are sampled again.

        Then all of them are handed over again, because the order of addition decides the bits.
        """
        for _ in range(EPOCH_TRIES):
            lost = [
                position
                for positions, answers in self._pending
                if not await self._is_accepted(answers)
                for position in positions
            ]
            self._pending.clear()
            if not lost:
                return
            self._note(f"{len(lost)} groups were lost with their node: sampled again.")
            again = await asyncio.gather(*(self._sample_again(entry.groups[position]) for position in lost))
            for position, group in zip(lost, again, strict=True):
                entry.groups[position] = group
            await self._calls.wait(self._ranks.reset_epoch(), "the learner to begin the epoch's sum again")
            self._feed(entry, is_complete=True)
        raise StuckError(
            f"Groups of one epoch were lost with their nodes {EPOCH_TRIES} times. Are nodes stable?"
        )

    async def _is_accepted(self, answers: Answers) -> bool:
        try:
            await self._calls.result(answers, "the learner to take in the epoch's groups")
        except GroupLost:
            return False
        return True

    def _feed(self, entry: _KeptEpoch, is_complete: bool) -> None:
        """An epoch's groups from the first."""
        self._forget_waves()
        self._hand_over(entry, is_complete)

    async def _with_recovery(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do it, and again after each death of a rank. `work` must be sound after _rebuild."""
        while True:
            try:
                return await work()
            except LearnerLost as loss:
                await self._recover(loss)

    async def _recover(self, loss: LearnerLost) -> None:
        while True:
            self._deaths.add(loss.error, self._ranks.nodes())
            self._check_kept(f"the learner died ({loss})")
            self._note(f"The learner is started again: {loss}")
            self._ranks.restart()
            try:
                await self._rebuild()
                return
            except LearnerLost as again:
                loss = again

    def _check_kept(self, why: str) -> None:
        """Raise RewindNeeded where the groups since the snapshot are not kept. why: they are needed."""
        if self._base.epoch + len(self._learned()) != self._finished:
            raise RewindNeeded(f"{why}, and no snapshot is kept (learner.snapshots)")

    def _learned(self) -> list[_KeptEpoch]:
        return [entry for entry in self._log if entry.learned]

    async def _rebuild(self) -> Published:
        """Bring newly started ranks to where the learner was: the snapshot, then the epochs since."""
        facts = await self._calls.wait(self._ranks.ready(), "the learner to load its model")
        self._record.check_model(facts)
        self._is_exact = all(rank.is_exact for rank in facts)
        self._nbytes = facts[0].nbytes
        await self._store_snapshot(wait=False)
        learned = self._learned()
        try:
            restored = self._base.restore(self._ranks)
            await self._calls.wait(restored, "the learner to take over its earlier state")
        except GroupLost as loss:
            raise RewindNeeded("the snapshot was lost with its node") from loss
        published = await self._publish(self._base.epoch)
        for epoch, entry in enumerate(learned, start=self._base.epoch + 1):
            self._feed(entry, is_complete=True)
            await self._wait_until_accepted(entry)
            await self._update(entry, lambda _: None)
            published = await self._publish(epoch)
        for entry in self._log[len(learned) :]:
            self._feed(entry, is_complete=False)
        return published

    def _request_snapshot(self, published: Published) -> None:
        """Ask for the state after the last epoch. It becomes the base once it is there."""
        if not self._config.learner.snapshots:
            self._log = []
            return
        base = _Base(self._finished, snapshot=(self._ranks.export_snapshot(), published.reference))
        # A rank does one thing after the other, so it is through with the snapshot when it answers this.
        self._snapshot = base, self._calls.begin(self._ranks.ready())

    async def _store_snapshot(self, wait: bool) -> None:
        """Make the snapshot that was asked for the base, if it is there. wait: until it is."""
        if self._snapshot is None or not (wait or self._snapshot[1].done()):
            return
        (base, answers), self._snapshot = self._snapshot, None
        # Where it was lost, the one before it stays the base.
        with suppress(LearnerLost):
            await self._calls.result(answers, "the learner's snapshot")
            self._log = self._log[base.epoch - self._base.epoch :]
            self._base = base
