"""The optimizer and what is checked around it: the step size of an update, and that numbers are finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from common.errors import WeightsError
from common.model.policy import Policy
from common.model.probe import Probe
from learner.objectives import LogProbs, Loss
from learner.parallel import Parallel


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to the peak, half a cosine down to a share of it, constant from there on.

    peak: AdamW's step size. warmup: updates until the peak is reached, 0 = at once. decay: updates of the
    half cosine, counted from the first update; 0 = the peak throughout. final_share: of the peak, at its end.
    """

    peak: float
    warmup: int
    decay: int
    final_share: float

    def at(self, update: int) -> float:
        """The step size of update number `update`, counted from 0: a resumed run has no state of it."""
        rising = min(1.0, (update + 1) / (self.warmup + 1))
        if not self.decay:
            return self.peak * rising
        through = min(1.0, update / self.decay)
        falling = self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * through))
        return self.peak * rising * falling


@dataclass(frozen=True)
class CheckedOptimizer:
    """AdamW over a policy's trained tensors, in the order of its parameters, checked around each step."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    probe: Probe
    rate: LearningRate
    parallel: Parallel

    def step(self, update: int, gradient_norm: float) -> None:
        """Step with the gradients as they are, which are finite and clipped.

        update: its number, from 0. gradient_norm: L2, of these gradients. Raises WeightsError where the
        optimizer holds other tensors than the policy, where a weight became non-finite, or where the weights
        act on nothing.
        """
        self._check_tensors()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.at(update)
        self.optimizer.step()
        if not self.parallel.all_finite(self.policy.trainable.parameters().values()):
            raise WeightsError(
                f"Update {update + 1}, with a gradient of norm {gradient_norm:.3g}, made weights not finite. "
                "Go on from the last checkpoint with a smaller optimizer.learning_rate."
            )
        if gradient_norm > 0:
            change = f"An update with a gradient of norm {gradient_norm:.3g} was made"
            self.probe.check_influence(self.policy, change)

    def forget_gradients(self) -> None:
        """As if nothing had been accumulated."""
        self.optimizer.zero_grad(set_to_none=True)

    @cached_property
    def _stepped(self) -> frozenset[int]:
        return frozenset(id(value) for group in self.optimizer.param_groups for value in group["params"])

    def _check_tensors(self) -> None:
        parameters = self.policy.trainable.parameters()
        strangers = [name for name, value in parameters.items() if id(value) not in self._stepped]
        if strangers:
            raise WeightsError(
                f"The optimizer does not hold {len(strangers)} of the policy's {len(parameters)} trained "
                f"weights, {strangers[0]} for one: its steps would change tensors that nothing uses."
            )


def find_nonfinite_loss(log_probs: LogProbs, loss: Loss, coefficients: Tensor) -> str:
    """What is not finite before the backward pass, in words; "" where all is. coefficients: (B, T_s)."""
    ref = log_probs.now if log_probs.ref is None else log_probs.ref
    for name, value in {
        "log-probs": torch.stack([log_probs.now.detach(), log_probs.old, ref.detach()]),
        "the loss": loss.sum.detach(),
        "the loss's derivatives": coefficients,
    }.items():
        if not bool(torch.isfinite(value).all()):
            return f"{name} not finite"
    return ""
