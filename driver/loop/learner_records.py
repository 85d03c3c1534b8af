"""What is kept so that a learner can be brought back to where it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray

from driver.loop.source import Group


@dataclass(frozen=True)
class Base:
    """What a learner can be restored to. files: a reference of them; none for the pretrained weights.

    held: the files themselves where the learner made them; while they are held, this node's copy stays.
    """

    epoch: int
    files: tuple[ray.ObjectRef, ...]
    held: tuple[Any, ...]


@dataclass
class KeptEpoch:
    """An epoch since the base: its groups in prompt order, and whether its weights are published."""

    groups: list[Group] = field(default_factory=list)
    learned: bool = False
