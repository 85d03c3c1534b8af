"""Published weights as the driver holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from common.errors import WeightsError
from common.model.loading import check_base
from common.trajectory import PolicyStamp
from learner.report import LearnerFacts


@dataclass(frozen=True)
class Published:
    """Weights that tasks can name: the reference that tasks carry, never the weights themselves.

    They lie on the learner's node and on those of the actors that have fetched them. Where all of these die,
    a task that carries the reference fails with Ray's ObjectLostError: the learner publishes them again.
    """

    reference: ray.ObjectRef
    stamp: PolicyStamp
    nbytes: int


class WeightsRecord:
    """Which weights there were after each number of finished epochs: what is made again must be the same."""

    def __init__(self) -> None:
        self._stamps: dict[int, PolicyStamp] = {}
        self._bases: tuple[str, ...] = ()

    def check_model(self, ranks: Sequence[LearnerFacts]) -> None:
        """Raise WeightsError where a rank has another pretrained model than the first that there was."""
        self._bases = self._bases or (ranks[0].base,)
        for rank in ranks:
            check_base(rank.base, self._bases[0], f"A learner rank ({rank.process})")

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
