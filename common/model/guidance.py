"""The guided prediction of a network: it defines the policy, for theta, old and reference alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

Condition = Mapping[str, Tensor]
"""What the network is conditioned on, by the name of its argument; each tensor has a row a prompt or item."""

Forward = Callable[[Tensor, Tensor, Condition], Tensor]
"""One pass of a network: latents (M, ...), times (M,), condition of M rows -> (M, ...)."""


class Denoiser(Protocol):
    """Predicts under guidance. The policy is one, its reference another."""

    def predict(self, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """Guided output of the network.

        latents (M, ...), times float32 (M,) -> (M, ...). condition: see Guidance.
        """
        ...


class Guidance(Protocol):
    """Turns passes of a network into one prediction."""

    @property
    def rows(self) -> int:
        """Of a prompt's condition: 1, or 2 where guidance moves away from another prompt."""
        ...

    def predict(self, forward: Forward, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """The guided prediction, (M, ...).

        condition: one prompt's, `rows` rows; or that of M items, M rows of the prompts', then as many of
        those moved away from.
        """
        ...


@dataclass(frozen=True)
class GuidedNetwork:
    """Guided prediction of one network; a Denoiser.

    forward: one pass of it, see Family. autocast: bfloat16 forward passes, float32 result. compiled: its
    repeated blocks are.
    """

    forward: Callable[[Any, Tensor, Tensor, Condition], Tensor]
    network: Any
    guidance: Guidance
    autocast: bool
    compiled: bool = False

    def predict(self, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.guidance.predict(partial(self.forward, self.network), latents, times, condition)


def for_items(condition: Condition, items: int) -> Condition:
    """One prompt's condition as that of so many items. Whoever predicts step after step does it once."""
    return {name: rows.repeat_interleave(items, 0) for name, rows in condition.items()}


def _each(condition: Condition, kinds: int, items: int) -> Condition:
    is_one_prompt = all(len(rows) == kinds for rows in condition.values())
    return for_items(condition, items) if is_one_prompt else condition


@dataclass(frozen=True)
class Unguided:
    """The prediction for the prompt, in one pass."""

    rows: int = 1

    def predict(self, forward: Forward, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Guidance."""
        return forward(latents, times, _each(condition, 1, len(latents)))


@dataclass(frozen=True)
class ClassifierFree:
    """f = f_negative + scale (f_prompt - f_negative), both in one pass of twice the items."""

    scale: float
    rows: int = 2

    def predict(self, forward: Forward, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Guidance."""
        prompt, negative = _both(forward, latents, times, condition)
        return negative + self.scale * (prompt - negative)


@dataclass(frozen=True)
class NormPreserving:
    """Classifier-free guidance scaled to the length of the prompt's own prediction, over the last axis."""

    scale: float
    rows: int = 2

    def predict(self, forward: Forward, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Guidance."""
        prompt, negative = _both(forward, latents, times, condition)
        guided = negative + self.scale * (prompt - negative)
        lengths = [torch.linalg.vector_norm(value, dim=-1, keepdim=True) for value in (prompt, guided)]
        return guided * (lengths[0] / lengths[1])


@dataclass(frozen=True)
class EmbeddedScale:
    """The network takes the scale as an input, `guidance`, float32 (M,): one pass."""

    scale: float
    rows: int = 1

    def predict(self, forward: Forward, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Guidance."""
        scale = torch.full_like(times, self.scale, dtype=torch.float32)
        return Unguided().predict(
            lambda x, t, rows: forward(x, t, {**rows, "guidance": scale}), latents, times, condition
        )


def classifier_free(scale: float) -> Guidance:
    """Scale 1 is no guidance, and takes one pass of the items."""
    return Unguided() if scale == 1.0 else ClassifierFree(scale)


def _both(forward: Forward, latents: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    twice = latents.repeat(2, *[1] * (latents.dim() - 1))
    prompt, negative = forward(twice, times.repeat(2), _each(condition, 2, len(latents))).chunk(2)
    return prompt, negative
