"""A chain whose best policy can be written down: PRDP must find it.

The policy has Gaussian steps k = 0..T-1, from noise to picture, with the linear mean
a_k x + b_k (scale_k x + shift_k) and standard deviation s_k, and trains scale and shift. The reference has
scale 0 and some shift. The reward is linear in the last x: r = <w, x_T>, counting from the noise x_0 here.

The optimum of E[r] - beta KL(pi || pi_ref) over trajectories is pi* proportional to pi_ref exp(r / beta).
Under the reference a later x depends on an earlier one only through products of a, so with
A_k = a_(k+1) ... a_(T-1)

    log E_ref[exp(r / beta) | x_(k+1)] = A_k <w, x_(k+1)> / beta + constant

and the best step tilts the reference's by it, which shifts a Gaussian's mean and nothing else:

    pi*(x_(k+1) | x_k) proportional to Normal(x_(k+1); mean_ref, s_k^2) exp(A_k <w, x_(k+1)> / beta)
                                     = Normal(x_(k+1); mean_ref + s_k^2 A_k w / beta, s_k^2).

So the best scale stays 0 and the best shift exceeds the reference's by s_k^2 A_k w / (beta b_k). The first
step has a_0 = 0: the policy has no say in how the noise x_0 is drawn, so pi* is exact only where r does not
depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.sampler import sample_group
from common.config.training import SamplingSection
from common.model.forward_process import NoiseLevels
from common.model.guidance import Condition, Guidance, GuidedNetwork, Unguided
from common.model.policy import Policy
from common.model.probe import Probe
from common.model.steps import Steps
from common.model.trainable import FullTrainable
from common.trajectory import NoiseKey, PromptTask, ScoredGroup
from learner.build import build_engine
from learner.learner import Learner, LearnerSettings
from learner.objectives.prdp import PAIR_WEIGHTINGS, STEP_REDUCTIONS, Prdp
from learner.old_policy import Online
from learner.optimizer import CheckedOptimizer, LearningRate
from learner.parallel import Single
from tests.scored_groups import pointwise

A = (0.0, 0.9, 0.8, 1.1)
B = (0.5, 0.7, -0.4, 0.3)
STD = (1.0, 0.7, 0.5, 0.0)
SHAPE = (1, 2, 2)
BETA = 0.5
WEIGHT = torch.tensor([[[0.3, -0.2], [0.0, 0.5]]])


class LinearMean(nn.Module):
    """The "UNet": scale_k x + shift_k, with a timestep that says how many steps are left."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(len(A)))
        self.shift = nn.Parameter(shift)

    def forward(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """(M, 1, 2, 2), (M,) -> (M, 1, 2, 2)."""
        step = len(A) - 1 - timesteps.long()
        return self.scale[step].view(-1, 1, 1, 1) * latents + self.shift[step]


class LinearFamily:
    """A pipeline family without prompts or pictures."""

    latent_shape = SHAPE
    device = torch.device("cpu")

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def parts(self) -> Mapping[str, nn.Module]:
        """The network alone."""
        return {"network": self.network}

    def guidance(self, scale: float) -> Guidance:
        """None."""
        return Unguided()

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Nothing to condition on."""
        return {}

    def negative(self) -> Condition:
        """Nothing to condition on."""
        return {}

    example = negative

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """The linear mean's model output."""
        output: Tensor = network(latents, times)
        return output

    def steps(self, sampling: SamplingSection) -> Steps:
        """Not asked for."""
        raise NotImplementedError

    def noise_levels(self, steps: int | None) -> NoiseLevels:
        """Not asked for."""
        raise NotImplementedError

    def load_adapter(self, folder: Path, network: nn.Module) -> None:
        raise NotImplementedError

    def save_adapter(self, folder: Path, layers: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Not asked for."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """No picture."""
        return np.zeros((latents.shape[0], 1, 1, 3), dtype=np.uint8)


def _best_shift(reference: Tensor) -> Tensor:
    """The optimum of the module's docstring, for the three stochastic steps."""
    best = []
    for step in range(3):
        following = math.prod(A[step + 1 :])
        best.append(reference[step] + STD[step] ** 2 * following * WEIGHT / (BETA * B[step]))
    return torch.stack(best)


@pytest.mark.parametrize(
    ("updates", "clip_range"), [pytest.param(1, math.inf, marks=pytest.mark.slow), (3, 0.1)]
)
def test_it_converges_to_the_known_optimum(updates: int, clip_range: float) -> None:
    epochs = {1: 300, 3: 100}[updates]
    start = torch.randn(len(A), *SHAPE, generator=torch.Generator().manual_seed(0))
    unet = LinearMean(start.clone())
    family = LinearFamily(unet)
    guided = GuidedNetwork(family.forward, unet, Unguided(), autocast=False)
    policy = Policy(family, FullTrainable(unet), guided)
    steps = Steps((3.0, 2.0, 1.0, 0.0), A, B, STD, stochastic_steps=(0, 1, 2))
    reference = policy.reference()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    elements = math.prod(SHAPE)
    rate = LearningRate(0.1, warmup=0, decay=epochs * updates, final_share=1e-3)
    parallel = Single()
    learner = Learner(
        build_engine(policy, steps, parallel, 32),
        Prdp(BETA, clip_range, elements, STEP_REDUCTIONS["sum"], PAIR_WEIGHTINGS["untied"]),
        CheckedOptimizer(policy, optimizer, Probe.of(policy, steps), rate, parallel),
        Online(2),
        LearnerSettings("run", 1e9, 0.0, updates, step_norms_every=0, base=""),
    )
    losses, clipped = [], [0.0]
    for epoch in range(epochs):
        task = PromptTask("", 32, NoiseKey(0, "train", epoch, 0), learner.publish().stamp, True)
        group, _ = sample_group(task, policy, reference, steps)
        rewards = (group.at(-1) * WEIGHT.numpy()).sum((1, 2, 3))
        learner.accumulate([ScoredGroup(group, pointwise(rewards, {}, ()))])
        losses.append(learner.finish_update().loss)
        for _ in range(updates - 1):
            clipped.append(learner.repeat_update().stats["clip_share"])
        learner.end_epoch()
    moved = float((_best_shift(start) - start[:3]).abs().max())
    assert moved > 0.5
    torch.testing.assert_close(unet.shift[:3].detach(), _best_shift(start), rtol=0, atol=3e-3)
    torch.testing.assert_close(unet.scale[:3].detach(), torch.zeros(3), rtol=0, atol=3e-3)
    assert torch.equal(unet.shift[3].detach(), start[3])
    assert losses[-1] < 1e-4 * losses[0]
    assert (max(clipped) > 0) == (updates > 1)
