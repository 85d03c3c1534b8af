"""The step distribution p(x_{t-1} | x_t, c): the only place that says how the policy turns a prediction into
a Gaussian.

Sampler and learner both call these functions. The distribution is DDIM's with noise level eta (Song et al.
2021, eqs. 12 and 16; eta = 1 is DDPM):

    sigma_t = eta sqrt((1 - abar_prev) / (1 - abar_t)) sqrt(1 - abar_t / abar_prev)
    mean    = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma_t^2) eps

x0 and eps are linear in x_t and the model's output f for every prediction type, so mean = a_t x_t + b_t f
with two numbers a step. They are computed once, in float64.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_TWO_PI = math.log(2.0 * math.pi)

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


def _epsilon(alpha: Tensor, noise: Tensor) -> Coefficients:
    return 1 / alpha, -noise / alpha, torch.zeros_like(alpha), torch.ones_like(alpha)


def _v_prediction(alpha: Tensor, noise: Tensor) -> Coefficients:
    return alpha, -noise, noise, alpha


def _sample(alpha: Tensor, noise: Tensor) -> Coefficients:
    return torch.zeros_like(alpha), torch.ones_like(alpha), 1 / noise, -alpha / noise


# Each gives (x0's weight of x_t, x0's of f, eps's of x_t, eps's of f), from alpha = sqrt(abar) and noise =
# sqrt(1 - abar).
PREDICTION_TYPES: dict[str, Callable[[Tensor, Tensor], Coefficients]] = {
    "epsilon": _epsilon,
    "v_prediction": _v_prediction,
    "sample": _sample,
}


def ddim_coefficients(
    alpha_bar: Tensor, alpha_bar_prev: Tensor, eta: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights a, b and standard deviation sigma of each step, all float64 (T,).

    alpha_bar, alpha_bar_prev: float64 (T,), cumulative signal power before and after the step; eta: float64
    (T,).
    """
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    std = eta * variance.clamp(min=0).sqrt()
    x0_x, x0_f, eps_x, eps_f = PREDICTION_TYPES[prediction_type](alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    signal = alpha_bar_prev.sqrt()
    direction = (1 - alpha_bar_prev - std**2).clamp(min=0).sqrt()
    return signal * x0_x + direction * eps_x, signal * x0_f + direction * eps_f, std


def _per_item(values: Tensor, steps: Tensor, like: Tensor) -> Tensor:
    return (
        values.to(device=like.device)[steps.to(like.device)]
        .to(like.dtype)
        .view(-1, *([1] * (like.dim() - 1)))
    )


@dataclass(frozen=True)
class StepDistribution:
    """p(x_{t-1} | x_t, c) of all T steps. Step 0 is the noisiest.

    timesteps: int64 (T,), what the UNet is told. sample_weight, output_weight, std: float64 (T,), a_t, b_t
    and sigma_t. stochastic_steps: positions of the steps that draw noise and enter the objective. At all
    others std is 0.
    """

    timesteps: Tensor
    sample_weight: Tensor
    output_weight: Tensor
    std: Tensor
    stochastic_steps: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        """T."""
        return int(self.timesteps.shape[0])

    def mean(self, latents: Tensor, output: Tensor, steps: Tensor) -> Tensor:
        """Mean of x_{t-1}.

        latents x_t and output f: (M, C, H, W); steps: int64 (M,) positions -> (M, C, H, W).
        """
        a = _per_item(self.sample_weight, steps, latents)
        b = _per_item(self.output_weight, steps, latents)
        return a * latents + b * output.to(latents.dtype)

    def sample(self, mean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """x_{t-1} = mean + sigma_t noise. mean, noise: (M, C, H, W); steps: int64 (M,)."""
        return mean + _per_item(self.std, steps, mean) * noise

    def log_prob(self, previous: Tensor, mean: Tensor, steps: Tensor) -> Tensor:
        """log p(x_{t-1} | x_t, c), MEAN over C H W, float64 (M,), in nats per latent element.

        previous x_{t-1}, mean: (M, C, H, W); steps: int64 (M,), stochastic ones only (elsewhere the density
        is not finite).
        """
        std = self.std.to(mean.device)[steps.to(mean.device)]
        squared = (previous - mean).double().square().flatten(1).mean(1)
        return -squared / (2 * std**2) - std.log() - 0.5 * LOG_TWO_PI

    def log_ratio(self, previous: Tensor, mean: Tensor, other_mean: Tensor, steps: Tensor) -> Tensor:
        """log p(x_{t-1}; mean) - log p(x_{t-1}; other_mean), MEAN over C H W, float32 (M,).

        The difference form <2 x - mean - other, mean - other> / (2 sigma^2): exactly 0 for equal means, and
        without the cancellation of subtracting two log-probs.
        """
        std = self.std.to(mean.device)[steps.to(mean.device)]
        product = ((previous - mean) + (previous - other_mean)) * (mean - other_mean)
        return (product.double().flatten(1).mean(1) / (2 * std**2)).float()

    def fingerprint(self, guidance_scale: float) -> str:
        """SHA-256 (hex) of distribution and guidance: equal where recorded log-probs can be compared."""
        total = hashlib.sha256(f"guidance {guidance_scale!r}; stochastic {self.stochastic_steps}".encode())
        for values in (self.timesteps, self.sample_weight, self.output_weight, self.std):
            total.update(values.double().cpu().numpy().tobytes())
        return total.hexdigest()
