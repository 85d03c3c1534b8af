"""What the UNet is conditioned on, for any pipeline family."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Conditions of M items. tensors: each (M, ...), by the name of the UNet's argument."""

    tensors: dict[str, Tensor]

    def repeat(self, times: int) -> Conditioning:
        """Each item `times` times in a row: (M, ...) -> (M * times, ...)."""
        return Conditioning({name: value.repeat_interleave(times, 0) for name, value in self.tensors.items()})

    def rows(self, index: Tensor) -> Conditioning:
        """The items at `index`, int64 (K,) -> (K, ...)."""
        return Conditioning({name: value[index] for name, value in self.tensors.items()})

    def join(self, other: Conditioning) -> Conditioning:
        """These items, then the other's."""
        return Conditioning(
            {name: torch.cat([value, other.tensors[name]]) for name, value in self.tensors.items()}
        )


@dataclass(frozen=True)
class PromptCondition:
    """One prompt's condition and the empty prompt's, which guidance moves away from. One item each."""

    prompt: Conditioning
    empty: Conditioning
