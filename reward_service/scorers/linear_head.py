"""The five linear layers, without activations, that end ImageReward and LAION's aesthetic predictor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.errors import RewardError
from reward_service.scorers.model_files import Tensors, device

_LAYERS = (0, 2, 4, 6, 7)
"""Their places in the original torch.nn.Sequential; between them is dropout, idle when scoring."""


@dataclass(frozen=True)
class LinearHead:
    """Linear layers one after the other: weights (out, in), biases (out,), one number at the end."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """float32 (M, D) -> float32 (M,)."""
        for weight, bias in self.layers:
            embeddings = torch.nn.functional.linear(embeddings, weight, bias)
        return embeddings.squeeze(-1)


def linear_head(tensors: Tensors, width: int, where: str) -> LinearHead:
    """The head of tensors layers.{0,2,4,6,7}.{weight,bias}, for embeddings of D = width.

    Raises RewardError where there are others, or their shapes do not follow each other down to one number.
    """
    names = [f"layers.{number}.{kind}" for number in _LAYERS for kind in ("weight", "bias")]
    if sorted(tensors) != sorted(names):
        raise RewardError(
            f"{where} is no head of five linear layers without activations: needed are the tensors "
            f"layers.{{0,2,4,6,7}}.{{weight,bias}}, found {sorted(tensors)[:12]}."
        )
    layers = []
    for number in _LAYERS:
        weight, bias = tensors[f"layers.{number}.weight"], tensors[f"layers.{number}.bias"]
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise RewardError(
                f"{where}: layers.{number} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}; "
                f"its input has {width} numbers."
            )
        width = weight.shape[0]
        layers.append((weight.float().to(device()), bias.float().to(device())))
    if width != 1:
        raise RewardError(f"{where} ends in {width} numbers; a score is one.")
    return LinearHead(tuple(layers))
