"""Published weights as the driver holds them."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from common.trajectory import PolicyStamp
from common.weights import WeightBlob


@dataclass(frozen=True)
class Published:
    """Weights that tasks can name: the reference that tasks carry, and the object behind it.

    The object is held here, so that this node keeps a copy of it: the learner's node may die.
    """

    reference: ray.ObjectRef
    blob: WeightBlob

    @property
    def stamp(self) -> PolicyStamp:
        """Which weights."""
        return self.blob.stamp

    @property
    def nbytes(self) -> int:
        """Their size."""
        return int(self.blob.data.nbytes)
