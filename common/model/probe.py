"""Proof that weights act: what a policy predicts on one small, fixed input changes with its weights.

A digest proves which numbers a process holds. It does not prove that the network uses them: an adapter that
is switched off, or whose names bind to modules that no forward pass reaches, has the right digest too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from common.errors import WeightsError
from common.model.guidance import Condition
from common.model.policy import Policy
from common.model.steps import Steps

NUDGE = 0.1


class Probe:
    """One item of a network's input, and what the policy predicted on it when it was last looked at."""

    def __init__(self, policy: Policy, latents: Tensor, times: Tensor, condition: Condition) -> None:
        self._latents = latents
        self._times = times
        self._condition = condition
        self._seen = self.output(policy)

    @staticmethod
    def of(policy: Policy, steps: Steps) -> Probe:
        """The same numbers in every process, at the first step that enters the objective."""
        family = policy.family
        # Double where the network is: tests train such.
        kind = torch.promote_types(next(policy.guided.network.parameters()).dtype, torch.float32)
        draw = torch.randn(1, *family.latent_shape, generator=torch.Generator().manual_seed(0))
        return Probe(
            policy,
            latents=draw.to(family.device, kind),
            times=steps.time(steps.stochastic_steps[0], 1),
            condition=policy.example(),
        )

    @torch.no_grad()
    def output(self, policy: Policy) -> Tensor:
        """What the policy predicts, (1, C, H, W): one network pass without autocast, no guidance."""
        return policy.predict_plainly(self._latents, self._times, self._condition)

    def check_influence(self, policy: Policy, change: str) -> None:
        """Refuse a policy whose trained weights do not act. Call after they have become others.

        change: what was done to them since the last look, for the message. Outputs that are equal to the bit
        may come from a change too small for the network's precision, so every weight is then moved much
        further, and back to the same bits. Raises WeightsError where not even that shows.
        """
        before, self._seen = self._seen, self.output(policy)
        if not torch.equal(before, self._seen):
            return
        with _nudged(policy):
            moved = self.output(policy)
        if torch.equal(moved, self._seen):
            raise WeightsError(
                f"{change}, and the network's output stayed the same to the bit, also when every trained "
                "weight was moved much further: they act on nothing. The adapter is switched off, or its "
                "names bind to modules that the forward pass does not use. Compare policy.target_modules "
                "with the model, and the versions of diffusers and peft with constraints.txt."
            )


@contextmanager
def _nudged(policy: Policy) -> Iterator[None]:
    """Every trained weight elsewhere inside, and as it was afterwards."""
    parameters = policy.trainable.parameters()
    own = {name: value.detach().clone() for name, value in parameters.items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        try:
            for value in parameters.values():
                value.add_(NUDGE * torch.randn(value.shape, generator=generator).to(value))
            yield
        finally:
            for name, value in parameters.items():
                value.copy_(own[name])
