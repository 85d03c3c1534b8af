"""From a pipeline's scheduler configuration to its steps: DDIM, and stochastic samplers of flow models.

DDIM with noise level eta (Song et al. 2021, eqs. 12 and 16; eta = 1 is DDPM):

    sigma_t = eta sqrt((1 - abar_prev) / (1 - abar_t)) sqrt(1 - abar_t / abar_prev)
    mean    = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma_t^2) eps

x0 and eps are linear in x_t and the network's output f for every prediction type, so mean = a x_t + b f.

Flow models: x_s = (1 - s) x0 + s e, the network predicts v = e - x0; a step goes from noise level s to n < s.
With X0 = x - s v and E = x + (1 - s) v every sampler is a pair of weights of x and v, and a deviation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from common.errors import ModelError
from common.model.forward_process import NoiseLevels
from common.model.steps import Chosen, Steps

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


def std_of_gain(alpha_bar: Tensor, alpha_bar_prev: Tensor, gain: Tensor, prediction_type: str) -> Tensor:
    """The deviation at which a DDIM step has this gain |b| / sigma, up to DDPM's; all float64 (T,).

    With b = p + q sqrt(1 - abar' - sigma^2) it is the smaller root of |p| - gain sigma = |q| sqrt(...); as p
    and q have opposite signs, the gain falls as sigma rises and is least at exactly DDPM's. gain: at least
    that.
    """
    _, x0_f, _, eps_f = PREDICTION_TYPES[prediction_type](alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    p, q, room = (alpha_bar_prev.sqrt() * x0_f).abs(), eps_f.abs(), 1 - alpha_bar_prev
    discriminant = q * (room * (q**2 + gain**2) - p**2).clamp(min=0).sqrt()
    return (p**2 - q**2 * room) / (p * gain + discriminant)


def ddim_steps(
    config: Mapping[str, Any], steps: int, eta: float, chosen: Chosen, flat: bool = False
) -> Steps:
    """The steps that diffusers' DDIMScheduler samples with in this configuration.

    config: the scheduler's configuration; steps: T; eta: noise level of the chosen steps, the others being
    DDIM steps with eta 0. flat: eta holds for the chosen step of the largest gain, and the others have so
    much less noise that their gain is the same. Raises ModelError where the schedule does not hold so many
    steps, or where a chosen step has no noise.
    """
    scheduler = _ddim_scheduler(config)
    timesteps = _timesteps(scheduler, steps)
    previous = timesteps - scheduler.config.num_train_timesteps // steps
    alphas = scheduler.alphas_cumprod.double()
    alpha_bar_final = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    alpha_bar_prev = torch.where(previous >= 0, alphas[previous.clamp(min=0)], alpha_bar_final)

    def coefficients(etas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ddim_coefficients(alphas[timesteps], alpha_bar_prev, etas, scheduler.config.prediction_type)

    a, weight, std = coefficients(torch.full((steps,), eta, dtype=torch.float64))
    if not bool(torch.isfinite(torch.stack([a, weight, std])).all()):
        raise ModelError(
            f"The noise schedule gives non-finite coefficients at {steps} steps with prediction type "
            f"{scheduler.config.prediction_type!r}; a zero-SNR schedule needs v_prediction or sample."
        )
    stochastic = chosen.of(_gains(weight.tolist(), std.tolist()))
    etas = torch.zeros(steps, dtype=torch.float64)
    etas[list(stochastic)] = eta
    if flat and stochastic:
        gains = torch.tensor(_gains(weight.tolist(), std.tolist()), dtype=torch.float64)
        level = gains[list(stochastic)].max()
        equal = std_of_gain(
            alphas[timesteps], alpha_bar_prev, level.expand(steps), scheduler.config.prediction_type
        )
        etas = torch.where(gains < level, etas * (equal / std), etas)
    of_steps = torch.stack(coefficients(etas)).tolist()
    still = torch.stack(coefficients(torch.zeros_like(etas))).tolist()
    return Steps(
        times=tuple(timesteps.double().tolist()),
        sample_weight=tuple(of_steps[0]),
        output_weight=tuple(of_steps[1]),
        std=tuple(of_steps[2]),
        stochastic_steps=stochastic,
        quiet=(tuple(still[0]), tuple(still[1])),
    )


def _ddim_scheduler(config: Mapping[str, Any]) -> Any:
    # Other schedulers say by final_sigmas_type what DDIM says by set_alpha_to_one.
    final = {"set_alpha_to_one": config.get("final_sigmas_type") != "sigma_min"}
    return DDIMScheduler.from_config({**final, **config, "clip_sample": False})


def ddim_noise_levels(config: Mapping[str, Any], steps: int | None) -> NoiseLevels:
    """Noise levels of a discrete-time schedule: those at which its T steps begin, or all that it has (None).

    Raises ModelError where it has not so many steps.
    """
    scheduler = _ddim_scheduler(config)
    every = torch.arange(scheduler.config.num_train_timesteps)
    timesteps = every if steps is None else _timesteps(scheduler, steps)
    alpha_bar = scheduler.alphas_cumprod.double()[timesteps]
    alpha, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    aims = {
        "epsilon": (torch.zeros_like(alpha), torch.ones_like(alpha)),
        "v_prediction": (-noise, alpha),
        "sample": (torch.ones_like(alpha), torch.zeros_like(alpha)),
    }
    of_clean, of_noise = aims[scheduler.config.prediction_type]
    numbers = (timesteps.double(), alpha, noise, of_clean, of_noise)
    times, signal, noises, cleans, targets = (tuple(values.tolist()) for values in numbers)
    return NoiseLevels(times, signal, noises, cleans, targets)


def _gains(weights: Sequence[float], deviations: Sequence[float]) -> list[float]:
    return [abs(b) / std if std > 0 else math.inf for b, std in zip(weights, deviations, strict=True)]


def _timesteps(scheduler: Any, steps: int) -> Tensor:
    """What the network is told at each step, int64 (T,). Raises ModelError where there are not T of them."""
    trained, spacing = scheduler.config.num_train_timesteps, scheduler.config.timestep_spacing
    if steps > trained:
        raise ModelError(f"sampling.steps is {steps}, but the model's schedule has only {trained} steps.")
    scheduler.set_timesteps(steps)
    timesteps: Tensor = scheduler.timesteps.to(torch.int64).cpu()
    # diffusers' arithmetic goes past an end of the schedule for a few numbers, such as 61 with trailing
    # spacing.
    if len(timesteps) != steps or int(timesteps.min()) < 0 or int(timesteps.max()) >= trained:
        raise ModelError(
            f"The model's schedule ({spacing} spacing of {trained} steps, offset "
            f"{scheduler.config.steps_offset}) cannot be cut into {steps} steps: they would run from "
            f"{int(timesteps.max())} to {int(timesteps.min())}. Choose another sampling.steps."
        )
    return timesteps


Step = tuple[float, float, float]
"""Weights a, b and deviation of one step."""


def _sde(s: float, n: float, g: float) -> Step:
    """Euler-Maruyama of the SDE with diffusion g and the flow's marginals."""
    d = n - s
    return 1 + g**2 * d / (2 * s), d * (1 + g**2 * (1 - s) / (2 * s)), g * math.sqrt(-d)


def _flow_sde(s: float, n: float, level: float) -> Step:
    """Flow-GRPO, g = level sqrt(s / (1 - s)); with n in the place of s at s = 1, where that is infinite, and
    nearer to it than a tenth of the step, where Euler's step would leap. (The authors' code puts n into the
    denominator alone, so its first step draws 1 / sqrt(n) of this noise.)"""
    at = n if 1 - s < (s - n) / 10 else s
    return _sde(s, n, level * math.sqrt(at / (1 - at)))


def _dance_sde(s: float, n: float, level: float) -> Step:
    """DanceGRPO, g = level."""
    return _sde(s, n, level)


def _to_noise(s: float, n: float, kept: float, std: float) -> Step:
    """mean = (1 - n) X0 + kept E; with kept^2 + std^2 = n^2 the flow's marginals are kept exactly."""
    return 1 - n + kept, -(1 - n) * s + kept * (1 - s), std


def _cps(s: float, n: float, level: float) -> Step:
    """Coefficients-preserving sampling (arXiv 2509.05952): std = n sin(level pi / 2)."""
    angle = level * math.pi / 2
    return _to_noise(s, n, n * math.cos(angle), n * math.sin(angle))


def _precise(s: float, n: float, level: float) -> Step:
    """Tencent-Hunyuan's Precise: std = n sqrt(1 - R), R = [n (1 - s) / (s (1 - n))]^(level^2)."""
    r = (n * (1 - s) / (s * (1 - n))) ** (level**2)
    return _to_noise(s, n, n * math.sqrt(r), n * math.sqrt(1 - r))


FLOW_SAMPLERS: dict[str, Callable[[float, float, float], Step]] = {
    "flow_sde": _flow_sde,
    "dance_sde": _dance_sde,
    "cps": _cps,
    "precise": _precise,
}


def flow_sigmas(
    config: Mapping[str, Any],
    steps: int,
    tokens: int,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> list[float]:
    """T+1 noise levels from 1 to 0 that FlowMatchEulerDiscreteScheduler gives a pipeline.

    config: the scheduler's. tokens: patches of a latent: a dynamic shift is exp of a linear function of them,
    base_shift at base_image_seq_len and max_shift at max_image_seq_len. sigmas: T levels that the pipeline
    hands to set_timesteps, which shifts them; None = it hands over T alone, and levels from 1 to that of the
    schedule's last of num_train_timesteps steps, which is a shifted one, are shifted once more. mu: of a
    dynamic shift that is exp(mu), where the pipeline computes it otherwise.
    """
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    if mu is None and scheduler.config.use_dynamic_shifting:
        low, high = scheduler.config.base_image_seq_len, scheduler.config.max_image_seq_len
        first, last = scheduler.config.base_shift, scheduler.config.max_shift
        mu = first + (last - first) * (tokens - low) / (high - low)
    scheduler.set_timesteps(num_inference_steps=steps, sigmas=sigmas, mu=mu)
    levels: list[float] = scheduler.sigmas.double().tolist()
    return levels


def flow_steps(sigmas: Sequence[float], time_scale: float, kind: str, level: float, chosen: Chosen) -> Steps:
    """The steps of a flow model.

    sigmas: T+1 noise levels from 1 to 0. time_scale: the network is told time_scale s. kind: of
    FLOW_SAMPLERS, with its noise level; steps that are not chosen take level 0, the ODE's Euler step.
    Raises ModelError where a chosen step has no noise.
    """
    pairs = list(itertools.pairwise(sigmas))
    noisy = [FLOW_SAMPLERS[kind](s, n, level) for s, n in pairs]
    stochastic = chosen.of(_gains([b for _, b, _ in noisy], [std for _, _, std in noisy]))
    still = [FLOW_SAMPLERS[kind](s, n, 0.0) for s, n in pairs]
    mixed = [step if at in stochastic else still[at] for at, step in enumerate(noisy)]
    a, b, std = (tuple(values) for values in zip(*mixed, strict=True))
    still_a, still_b, _ = (tuple(values) for values in zip(*still, strict=True))
    times = tuple(time_scale * s for s in sigmas[:-1])
    return Steps(times, a, b, std, stochastic, quiet=(still_a, still_b))


def flow_noise_levels(sigmas: Sequence[float], time_scale: float) -> NoiseLevels:
    """Noise levels of a flow model: x_s = (1 - s) x_0 + s e, whose network predicts e - x_0.

    sigmas: L levels, none of them 0. time_scale: the network is told time_scale s.
    """
    levels = tuple(sigmas)
    ones = tuple(1.0 for _ in levels)
    times, signal = tuple(time_scale * s for s in levels), tuple(1 - s for s in levels)
    return NoiseLevels(times, signal, levels, tuple(-one for one in ones), ones)
