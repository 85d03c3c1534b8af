"""Which numbers of a group are not finite, in words; "" where all are. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from learner.objectives import ObjectiveResult


def find_nonfinite_loss(log_ratio: Tensor, result: ObjectiveResult, coefficients: Tensor) -> str:
    """Before the backward pass. log_ratio, coefficients: (B, T_s)."""
    for name, value in {
        "log ratios": log_ratio,
        "the loss": result.loss_sum.detach(),
        "the loss's derivatives": coefficients,
    }.items():
        if not bool(torch.isfinite(value).all()):
            return f"{name} not finite"
    return ""


def find_nonfinite_gradient(log_prob: Tensor, parameters: Iterable[nn.Parameter]) -> str:
    """After the backward pass. log_prob: the learner's own, (B, T_s); parameters: with their gradients."""
    if not bool(torch.isfinite(log_prob).all()):
        return "the learner's log-probs not finite"
    gradients = [value.grad for value in parameters if value.grad is not None]
    return "" if all_finite(gradients) else "the gradient not finite"


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite, and none so large that their sum is not.

    A sum with a NaN or an infinity is not finite, and is one pass over a tensor, without a copy of it.
    """
    sums: dict[torch.device, list[Tensor]] = {}
    for value in tensors:
        sums.setdefault(value.device, []).append(value.detach().sum())
    return all(bool(torch.isfinite(torch.stack(own)).all()) for own in sums.values())
