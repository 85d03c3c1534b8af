"""Weighted denoising losses: what the objectives without likelihoods have in common.

They need images (x_0), prompts and rewards, and no trajectory. An item is an image with a noise level and a
noise, (x_0, t, e); x_t and the target of the network's output are functions of it
(common.model.forward_process). The loss of a group, with f the guided prediction, which is what is trained as
everywhere else:

    sum over images i of   towards_i  mean over items of l((1 - beta) f_old + beta f)
                         + away_i     mean over items of l((1 + beta) f_old - beta f)
                         + reference_i mean over items of |f - f_ref|^2

with l the squared error of a prediction against the target, in the network's own parameterisation, MEAN over
a latent's elements. It is linear in the items' losses, so its coefficients are known before any pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.cluster.metrics import MetricDefinition
from common.config.objectives import DenoisingSection
from common.trajectory import Float64, GroupScore
from learner.objectives import Loss, Needs, WithoutAdvantages, statistic

TOWARDS, AWAY, REFERENCE, OLD = range(4)
"""Columns of an item's values: the two losses l, |f - f_ref|^2 and |f - f_old|^2, means over elements."""

SMALLEST_ERROR = 1e-5
"""Of a latent's mean absolute error that a loss is divided by, as in the authors' code of DiffusionNFT."""


@dataclass(frozen=True)
class Mirror:
    """What of an item is judged.

    beta: see the module. adaptive: l is the squared error of the x_0 that a prediction stands for, over its
    mean absolute error held constant; else the squared error of the prediction itself.
    """

    beta: float = 1.0
    adaptive: bool = False

    def values(
        self, output: Tensor, old: Tensor, reference: Tensor, target: Tensor, clean_error: Tensor
    ) -> Tensor:
        """An item's values, float64 (M, 4), with the graph of output.

        All predictions and the target: (M, ...). clean_error: (M,), see NoiseLevels.
        """
        towards = (1 - self.beta) * old + self.beta * output
        away = (1 + self.beta) * old - self.beta * output
        columns = [self._loss(towards - target, clean_error), self._loss(away - target, clean_error)]
        return torch.stack([*columns, _square(output - reference), _square(output - old)], dim=1)

    def _loss(self, error: Tensor, clean_error: Tensor) -> Tensor:
        if not self.adaptive:
            return _square(error)
        size = clean_error * error.detach().double().abs().flatten(1).mean(1)
        return clean_error.square() * _square(error) / size.clamp(min=SMALLEST_ERROR)


def _square(error: Tensor) -> Tensor:
    """Mean square over a latent's elements, float64 (M,)."""
    return error.double().square().flatten(1).mean(1)


@dataclass(frozen=True)
class ImageWeights:
    """How much each loss of each image counts: towards, away, reference, float64 (B,) each, see the module.

    weight: of the group, see Loss. stats: those of the objective's statistics that the rewards alone decide.
    """

    towards: Float64
    away: Float64
    reference: Float64
    weight: float
    stats: Mapping[str, tuple[float, float]]

    @staticmethod
    def of_share(share: Float64) -> ImageWeights:
        """Images towards which the policy is drawn, by shares (B,) that add up to 1."""
        nothing = np.zeros_like(share)
        return ImageWeights(
            towards=share,
            away=nothing,
            reference=nothing,
            weight=1.0,
            stats={
                "images_used": (float(1 / np.square(share).sum()), 1.0),
                "tied_groups": (float(np.ptp(share) == 0), 1.0),
            },
        )

    def coefficients(self, pairs: int) -> Tensor:
        """dL / d values of every item, float64 (B, pairs, 4)."""
        columns = [self.towards, self.away, self.reference, np.zeros_like(self.towards)]
        table = torch.tensor(np.stack(columns, axis=1)) / pairs
        return table[:, None].expand(-1, pairs, -1)


@dataclass(frozen=True)
class WeightedDenoising(WithoutAdvantages, ABC):
    """An objective of this loss, but for its weights. One that imitates: no old policy, no reference."""

    section: DenoisingSection

    needs: ClassVar[Needs] = Needs(reference=False, whole_epoch=False, steps=False)
    statistics: ClassVar[tuple[MetricDefinition, ...]] = (
        statistic("denoising_loss", "", "Mean over items with a weight of the squared error, unweighted."),
        statistic(
            "images_used", "images", "Images that a prompt is learned from: 1 / sum of squared shares."
        ),
        statistic("tied_groups", "share", "Share of prompts whose images all weigh the same."),
    )

    @property
    def mirror(self) -> Mirror:
        """What of an item is judged."""
        return Mirror()

    @property
    def reference_weight(self) -> float:
        """Of |f - f_ref|^2; 0 = no pass through the reference."""
        return 0.0

    def old_decay(self, updates: int) -> float | None:
        """How much of the old policy stays when an epoch ends after so many updates of the run; None where
        there is none: the policy that samples is the one that is trained."""
        return None

    @abstractmethod
    def image_weights(self, score: GroupScore, advantages: Float64 | None) -> ImageWeights:
        """Of one group. advantages: (B,), as given by `advantages`."""
        ...

    def loss(self, weights: ImageWeights, values: Tensor) -> Loss:
        """The loss of one group. values: of its items, float64 (B, P, 4); 0 where none has a weight."""
        coefficients = weights.coefficients(values.shape[1])
        passed = coefficients.any(2)
        denoised = float(values[..., TOWARDS][passed].sum()), float(passed.sum())
        return Loss(
            sum=(coefficients * values).sum(),
            weight=weights.weight,
            stats={"denoising_loss": denoised, **weights.stats},
        )
