"""What is remembered of earlier rewards, prompt by prompt. Kept by the driver and in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RewardHistory:
    """The last rewards of each prompt, oldest first; the prompt that was seen longest ago comes first.

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

    def to_json(self) -> dict[str, list[float]]:
        """As JSON holds it; floats come back to the bit."""
        return {prompt: list(rewards) for prompt, rewards in self.rewards.items()}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> RewardHistory:
        """Back from to_json. Raises TypeError or ValueError where it is something else."""
        return RewardHistory(
            {str(prompt): tuple(float(value) for value in rewards) for prompt, rewards in content.items()}
        )
