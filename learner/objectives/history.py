"""What is remembered of earlier rewards, prompt by prompt. Kept by the driver and in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RewardHistory:
    """The last rewards of each prompt, oldest first; the prompt that was seen longest ago comes first. JSON
    holds it as it is, and floats come back to the bit.

    Never changed: `with_rewards` returns the next one.
    """

    rewards: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def with_rewards(
        self, scores: Sequence[tuple[str, NDArray[np.float64]]], kept: int, prompts: int
    ) -> RewardHistory:
        """One that knows these groups too, (prompt, rewards (B,)) each, in order.

        kept: rewards remembered of a prompt; prompts: prompts remembered.
        """
        known = dict(self.rewards)
        for prompt, rewards in scores:
            earlier = known.pop(prompt, ())
            known[prompt] = (*earlier, *rewards.tolist())[-kept:]
        return RewardHistory(dict(list(known.items())[-prompts:]))
