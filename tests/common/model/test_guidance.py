"""Guidance against its formulas, and which rows of a condition each pass gets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.model.guidance import (
    ClassifierFree,
    Condition,
    EmbeddedScale,
    Guidance,
    NormPreserving,
    Unguided,
    classifier_free,
    for_items,
)

LATENTS = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([3.0, 2.0, 1.0])
PROMPT, NEGATIVE = torch.tensor([[2.0], [3.0], [4.0]]), torch.tensor([[-1.0], [-2.0], [-3.0]])


class Network:
    """Scales latents by the condition and adds the time; keeps the number of items of each pass."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def __call__(self, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        self.passes.append(len(latents))
        scale = condition["scale"].view(-1, 1, 1)
        extra = condition.get("guidance", torch.zeros(len(latents))).view(-1, 1, 1)
        return latents * scale + times.view(-1, 1, 1) + extra


def _alone(scale: Tensor) -> Tensor:
    return LATENTS * scale.view(-1, 1, 1) + TIMES.view(-1, 1, 1)


def _norm_preserving(prompt: Tensor, guided: Tensor) -> Tensor:
    return guided * prompt.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("shared", "repeated"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize(
    ("guidance", "passes"),
    [(Unguided(), [3]), (ClassifierFree(4.0), [6]), (NormPreserving(4.0), [6]), (EmbeddedScale(3.5), [3])],
)
def test_predictions(guidance: Guidance, passes: list[int], shared: bool, repeated: bool) -> None:
    """shared: one prompt's condition for all items, or a prompt an item. repeated: beforehand."""
    prompt, negative = (rows[:1].repeat(3, 1) if shared else rows for rows in (PROMPT, NEGATIVE))
    rows = [value[:1] if shared else value for value in (prompt, negative)][: guidance.rows]
    network, condition = Network(), {"scale": torch.cat(rows)}
    result = guidance.predict(network, LATENTS, TIMES, for_items(condition, 3) if repeated else condition)
    towards, away = _alone(prompt), _alone(negative)
    guided = away + 4.0 * (towards - away)
    expected = {
        Unguided: towards,
        ClassifierFree: guided,
        NormPreserving: _norm_preserving(towards, guided),
        EmbeddedScale: towards + 3.5,
    }[type(guidance)]
    torch.testing.assert_close(result, expected)
    assert network.passes == passes


def test_scale_one_is_no_guidance() -> None:
    assert classifier_free(1.0) == Unguided()
    assert classifier_free(1.5) == ClassifierFree(1.5)
