"""The step distribution p(x_{t-1} | x_t, c): the only place that says how a policy turns a prediction into a
Gaussian.

Sampler and learner both call these functions. For every sampler that is known here, DDIM with eta and the
stochastic samplers of flow models, the Gaussian has

    mean = a_t x_t + b_t f,        standard deviation sigma_t,

with f the network's output and three numbers a step: common.model.schedules computes them, in float64.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from common.errors import ModelError

CPU = torch.device("cpu")
LOG_TWO_PI = math.log(2.0 * math.pi)

Positions = int | Tensor
"""Which steps a batch of M items is at: one position for all, or int64 (M,) on the items' device."""


@dataclass(frozen=True)
class Window:
    """So many stochastic steps in a row, the only ones that draw noise in an epoch (MixGRPO, arXiv
    2507.21802). The steps after it depend on the weights too and enter no likelihood: an approximation.

    begin: run seed and epoch -> number of the stochastic step that it begins at. All groups of an epoch share
    the window, so all images that are compared do. name: says what begin computes.
    """

    size: int
    begin: Callable[[int, int], int]
    name: str


@dataclass(frozen=True)
class Steps:
    """p(x_{t-1} | x_t, c) of all T steps. Step 0 is the noisiest.

    times, sample_weight, output_weight, std: T numbers each, what the network is told, a_t, b_t and sigma_t.
    stochastic_steps: positions of the steps that draw noise and enter the objective, increasing. At all
    others std is 0. device: of the latents. Where all items are at one step, its numbers are used as Python
    floats; they round as the tensors on the device do, so both give the same bits, and nothing is copied.
    quiet: a_t and b_t of all steps without noise. window: None = every stochastic step draws noise in every
    epoch. With one, these are the steps that may; their numbers are the same in every window, so whoever
    computes log-probs needs no more.
    """

    times: tuple[float, ...]
    sample_weight: tuple[float, ...]
    output_weight: tuple[float, ...]
    std: tuple[float, ...]
    stochastic_steps: tuple[int, ...]
    device: torch.device = CPU
    quiet: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    window: Window | None = None

    def during(self, run_seed: int, epoch: int) -> Steps:
        """The steps of an epoch: those outside its window draw no noise."""
        if self.window is None:
            return self
        begin = self.window.begin(run_seed, epoch)
        drawn = self.stochastic_steps[begin : begin + self.window.size]

        def mixed(noisy: Sequence[float], quiet: Sequence[float]) -> tuple[float, ...]:
            return tuple(noisy[at] if at in drawn else quiet[at] for at in range(self.num_steps))

        return replace(
            self,
            sample_weight=mixed(self.sample_weight, self.quiet[0]),
            output_weight=mixed(self.output_weight, self.quiet[1]),
            std=mixed(self.std, [0.0] * self.num_steps),
            stochastic_steps=drawn,
            window=None,
        )

    def without_noise(self) -> Steps:
        """The same steps with a deviation of 0: the probability-flow ODE, or DDIM with eta 0."""
        sample_weight, output_weight = self.quiet
        return replace(
            self,
            sample_weight=sample_weight,
            output_weight=output_weight,
            std=(0.0,) * self.num_steps,
            stochastic_steps=(),
            window=None,
        )

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.times)

    @property
    def gains(self) -> tuple[float, ...]:
        """|b_t| / sigma_t of all T steps, see Chosen; 0 of those that draw no noise."""
        pairs = zip(self.output_weight, self.std, strict=True)
        return tuple(abs(b) / std if std else 0.0 for b, std in pairs)

    def time(self, steps: Positions, items: int) -> Tensor:
        """What the network is told, float32 (M,) on the device, M = items."""
        if isinstance(steps, int):
            return self._times[steps : steps + 1].expand(items)
        return self._times[steps]

    def mean(self, latents: Tensor, output: Tensor, steps: Positions) -> Tensor:
        """Mean of x_{t-1}, (M, ...). latents x_t and output f: (M, ...)."""
        a = self._coefficient(0, steps, latents)
        b = self._coefficient(1, steps, latents)
        return a * latents + b * output.to(latents.dtype)

    def sample(self, mean: Tensor, noise: Tensor, steps: Positions) -> Tensor:
        """x_{t-1} = mean + sigma_t noise, (M, ...)."""
        return mean + self._coefficient(2, steps, mean) * noise

    def log_prob(self, previous: Tensor, mean: Tensor, steps: Positions) -> Tensor:
        """log p(x_{t-1} | x_t, c), MEAN over a latent's elements, float64 (M,), in nats per element.

        previous x_{t-1}, mean: (M, ...). Stochastic steps only: elsewhere there is no density.
        """
        squared = (previous - mean).double().square().flatten(1).mean(1)
        return squared * self._scalar(3, steps) + self._scalar(4, steps)

    def log_ratio(self, previous: Tensor, mean: Tensor, other_mean: Tensor, steps: Positions) -> Tensor:
        """log p(x_{t-1}; mean) - log p(x_{t-1}; other_mean), MEAN over a latent's elements, float32 (M,).

        The difference form <2 x - mean - other, mean - other> / (2 sigma^2): exactly 0 for equal means, and
        without the cancellation of subtracting two log-probs.
        """
        product = ((previous - mean) + (previous - other_mean)) * (mean - other_mean)
        return (product.double().flatten(1).mean(1) * -self._scalar(3, steps)).float()

    @property
    def peaks(self) -> tuple[float, ...]:
        """The log-prob of the mean itself, the largest there is, of all T steps; NaN without noise."""
        return self._rows[4]

    def fingerprint(self, setting: str) -> str:
        """SHA-256 (hex): equal where recorded log-probs can be compared.

        setting: what else decides them, such as the guidance, in words.
        """
        window = "" if self.window is None else f"; window {self.window.name}"
        total = hashlib.sha256(f"{setting}; stochastic {self.stochastic_steps}{window}".encode())
        for values in (self.times, self.sample_weight, self.output_weight, self.std):
            total.update(torch.tensor(values, dtype=torch.float64).numpy().tobytes())
        return total.hexdigest()

    @cached_property
    def _rows(self) -> tuple[tuple[float, ...], ...]:
        """a, b, sigma, -1 / (2 sigma^2), -log sigma - log(2 pi) / 2; the last two are NaN without noise."""
        factor = tuple(-1 / (2 * std**2) if std else math.nan for std in self.std)
        constant = tuple(-math.log(std) - 0.5 * LOG_TWO_PI if std else math.nan for std in self.std)
        return self.sample_weight, self.output_weight, self.std, factor, constant

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self._rows, dtype=torch.float64, device=self.device)

    @cached_property
    def _times(self) -> Tensor:
        return torch.tensor(self.times, dtype=torch.float32, device=self.device)

    def _coefficient(self, row: int, steps: Positions, like: Tensor) -> float | Tensor:
        if isinstance(steps, int):
            return self._rows[row][steps]
        return self._table[row][steps].to(like.dtype).view(-1, *([1] * (like.dim() - 1)))

    def _scalar(self, row: int, steps: Positions) -> float | Tensor:
        return self._rows[row][steps] if isinstance(steps, int) else self._table[row][steps]


@dataclass(frozen=True)
class Chosen:
    """Which steps draw noise: the positions named, or, where there are none, those of little gain.

    max_gain: the gain of a step is |b_t| / sigma_t, how far its mean moves, in units of its own noise, where
    the network's output moves by one. It is the size of the log-prob's gradient with respect to the output,
    so a step of large gain outweighs all others in the objective.
    branch_at: steps that have to be among them, because siblings differ by their noise alone.
    """

    positions: Sequence[int] | None
    max_gain: float
    branch_at: Sequence[int] = ()

    def of(self, gains: Sequence[float]) -> tuple[int, ...]:
        """The positions, given every step's gain (infinite where it has no noise). Raises ModelError."""
        chosen = self._chosen(gains)
        still = sorted(set(self.branch_at) - set(chosen))
        if still:
            raise ModelError(
                f"sampling.branch_at names steps {still}, which draw no noise, so that siblings would be "
                f"equal. Those that draw noise are {list(chosen)}."
            )
        return chosen

    def _chosen(self, gains: Sequence[float]) -> tuple[int, ...]:
        if self.positions is None:
            chosen = tuple(step for step, gain in enumerate(gains) if gain <= self.max_gain)
            if not chosen:
                raise ModelError(
                    "No step of this schedule has a gain of at most sampling.max_step_gain = "
                    f"{self.max_gain:g} (the least is {min(gains):.3g}), so none would be learned from. Take "
                    "more sampling.steps, raise the bound, or name sampling.stochastic_steps."
                )
            return chosen
        silent = [step for step in self.positions if math.isinf(gains[step])]
        if silent:
            raise ModelError(
                f"Steps {silent} of {len(gains)} draw no noise in this model's schedule, so they have no "
                "log-probability. Leave them out of sampling.stochastic_steps (auto does)."
            )
        return tuple(self.positions)
