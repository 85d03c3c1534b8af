"""The learner's ranks as the driver waits for them: what their failures mean, and which weights they must
have.

consumes: references from LearnerRanks. produces: their small values, or an event that the run mends. waits
for: the ranks, with a limit of its own for each call. unblocked by: the ranks, or their death.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from common.cluster.process_failures import DEATHS
from common.cluster.references import first_line, value_of
from common.errors import PrdpError, StuckError, WeightsError
from common.model.loading import check_base
from common.trajectory import PolicyStamp
from driver.stalls import StallReporter
from learner.ranks import DEATH_LIMIT_S, LearnerRanks
from learner.report import LearnerFacts

Answers = asyncio.Future[list[Any]]


class LearnerLost(Exception):  # noqa: N818 - an event that the driver mends
    """A rank has died, or could not start. error: what Ray said of it, or of what went in its wake."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(what)
        self.error = error


class GroupLost(Exception):  # noqa: N818 - an event that the driver mends
    """What a call was given is lost with the node that held it."""


class RewindNeeded(Exception):  # noqa: N818 - an event, mended by the loop
    """The learner died and cannot learn the same again: epochs since the last checkpoint come again."""


@dataclass(frozen=True)
class Published:
    """Weights that tasks can name: the reference that tasks carry, never the weights themselves. nbytes:
    size.

    They lie on the learner's node and on those of the actors that have fetched them.
    """

    reference: ray.ObjectRef
    stamp: PolicyStamp
    nbytes: int


class RankCalls:
    """Waits for the ranks. limit_s: of a call that works on one wave of groups, or on none."""

    def __init__(self, ranks: LearnerRanks, stalls: StallReporter, limit_s: float) -> None:
        self._ranks = ranks
        self._stalls = stalls
        self._limit_s = limit_s
        self._asked: dict[Answers, tuple[list[asyncio.Task[Any]], float]] = {}

    def begin(self, references: Sequence[ray.ObjectRef]) -> Answers:
        """Begin to wait for the values of one call, see `result`. references: of the ranks, in order."""
        ranks = [asyncio.ensure_future(value_of(reference)) for reference in references]
        answers = asyncio.gather(*ranks)
        self._asked[answers] = ranks, asyncio.get_running_loop().time()
        answers.add_done_callback(self._answered)
        return answers

    def in_work(self) -> list[str]:
        """Each rank that has not answered, in words: who, where, for how long."""
        now, since = asyncio.get_running_loop().time(), dict[int, float]()
        for ranks, began in self._asked.values():
            for number, answer in enumerate(ranks):
                if not answer.done():
                    since[number] = min(began, since.get(number, began))
        return [
            f"{self._ranks.describe(number)}: no answer for {now - began:.0f} s"
            for number, began in sorted(since.items())
        ]

    def _answered(self, answers: Answers) -> None:
        self._asked.pop(answers)
        # An answer that nobody asks for any more is no error.
        if not answers.cancelled():
            answers.exception()

    async def wait(self, references: Sequence[ray.ObjectRef], what: str, waves: int = 1) -> list[Any]:
        """The values of one call; see `result`."""
        return await self.result(self.begin(references), what, waves)

    async def result(self, answers: Answers, what: str, waves: int = 1) -> list[Any]:
        """The values of one call. waves: so many of groups the call works on.

        Raises LearnerLost, GroupLost, StuckError naming `what` past the limit, or the learner's own error.
        """
        limit_s = self._limit_s * max(waves, 1)
        ranks, _ = self._asked.get(answers, ([], 0.0))
        try:
            with self._stalls.waiting_for(what):
                async with asyncio.timeout(limit_s):
                    return await answers
        except TimeoutError:
            silent = [self._ranks.describe(number) for number, one in enumerate(ranks) if one.cancelled()]
            raise StuckError(
                f"Waited {limit_s:.0f} s for {what}, in vain: no answer from {', '.join(silent)}. Raise "
                "learner.timeout_s, or look at its node and its logs."
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                raise GroupLost(first_line(error.cause)) from error
            # Ranks whose peer died fail in its wake, often before its death is known.
            if await self._lost_a_rank():
                raise LearnerLost(f"a rank died ({first_line(error)})", error) from error
            raise (error.cause if isinstance(error.cause, PrdpError) else error) from error
        except DEATHS as error:
            # Also where a rank could not start: all have started before, and one that fails while it meets
            # the others may do so because one of them has just died.
            raise LearnerLost(first_line(error), error) from error
        except ObjectLostError as error:
            raise GroupLost(first_line(error)) from error

    async def _lost_a_rank(self) -> bool:
        """Whether one of several ranks has died, as far as is known within DEATH_LIMIT_S."""
        asked = [asyncio.ensure_future(value_of(reference)) for reference in self._ranks.ready()]
        if len(asked) > 1:
            await asyncio.wait(asked, timeout=DEATH_LIMIT_S, return_when=asyncio.FIRST_EXCEPTION)
        answers = [one for one in asked if one.done()]
        for one in set(asked).difference(answers):
            one.cancel()
        return len(asked) > 1 and any(isinstance(one.exception(), DEATHS) for one in answers)


class WeightsRecord:
    """Which weights there were after each number of finished epochs: what is made again must be the same."""

    def __init__(self) -> None:
        self._stamps: dict[int, PolicyStamp] = {}
        self._base: str | None = None

    def check_model(self, ranks: Sequence[LearnerFacts]) -> None:
        """Raise WeightsError where a rank has another pretrained model than the first that there was."""
        self._base = self._base or ranks[0].base
        for rank in ranks:
            check_base(rank.base, self._base, f"A learner rank ({rank.process})")

    def forget_after(self, epoch: int) -> None:
        """The epochs after it may come out differently when they come again."""
        self._stamps = {number: stamp for number, stamp in self._stamps.items() if number <= epoch}

    def agrees(self, epoch: int, stamps: Sequence[PolicyStamp]) -> bool:
        """Whether these weights are those on record; true the first time. stamps: one of each rank, or more.

        Raises WeightsError where the ranks hold different weights.
        """
        first = stamps[0]
        if any(stamp != first for stamp in stamps):
            raise WeightsError(
                f"After {epoch} epochs the learner's ranks hold different weights: "
                f"{'; '.join(map(str, stamps))}. Is the hardware or a library of one of them another one?"
            )
        return self._stamps.setdefault(epoch, first) == first

    def of(self, epoch: int) -> PolicyStamp:
        """The weights on record, which must be there."""
        return self._stamps[epoch]
