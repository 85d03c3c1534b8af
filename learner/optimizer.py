"""One optimizer step that either leaves sound weights which act, or leaves everything as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import WeightsError
from common.model.policy import Policy
from common.model.probe import Probe
from learner.finite import all_finite

State = dict[str, Tensor]


@dataclass(frozen=True)
class StepBackup:
    """Copies of weights and optimizer state, by parameter name. They live for one step, in the host's memory:
    a GPU that just holds the policy and its optimizer has no room for them twice."""

    weights: State
    state: dict[str, State]

    @staticmethod
    def take(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> StepBackup:
        """Copy what a step changes."""
        return StepBackup(
            {name: value.detach().to("cpu", copy=True) for name, value in parameters.items()},
            {
                name: {key: kept.to("cpu", copy=True) for key, kept in optimizer.state.get(value, {}).items()}
                for name, value in parameters.items()
            },
        )

    @torch.no_grad()
    def put_back(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Undo the step, to the bit."""
        for name, value in parameters.items():
            value.copy_(self.weights[name])
            if not self.state[name]:
                optimizer.state.pop(value, None)
            for key, kept in self.state[name].items():
                optimizer.state[value][key].copy_(kept)


@dataclass(frozen=True)
class CheckedOptimizer:
    """The optimizer of a policy, and what is looked at around each of its steps."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    probe: Probe

    def take(self, gradient_norm: float) -> bool:
        """Step with the gradients as they are. Returns False where that made a weight or the optimizer's
        state non-finite; everything is then as it was.

        gradient_norm: L2, of these gradients. Raises WeightsError where the optimizer holds other tensors
        than the policy, or where the weights act on nothing.
        """
        parameters = self.policy.trainable.parameters()
        self._check_tensors(parameters)
        backup = StepBackup.take(parameters, self.optimizer)
        self.optimizer.step()
        if not all_finite([*parameters.values(), *_state_tensors(self.optimizer)]):
            backup.put_back(parameters, self.optimizer)
            return False
        if gradient_norm > 0:
            change = f"An update with a gradient of norm {gradient_norm:.3g} was made"
            self.probe.check_influence(self.policy, change)
        return True

    def _check_tensors(self, parameters: Mapping[str, nn.Parameter]) -> None:
        stepped = {id(value) for group in self.optimizer.param_groups for value in group["params"]}
        strangers = [name for name, value in parameters.items() if id(value) not in stepped]
        if strangers:
            raise WeightsError(
                f"The optimizer does not hold {len(strangers)} of the policy's {len(parameters)} trained "
                f"weights, {strangers[0]} for one: its steps would change tensors that nothing uses."
            )


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [value for state in optimizer.state.values() for value in state.values()]
