"""The learner of objectives without likelihoods: each wave passes once, whatever it was sampled with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from common.model.weights import Tensors
from common.stopwatch import Stopwatch
from common.trajectory import ScoredGroup
from learner.denoising import DenoisingEngine, HeldWeights, noised_wave
from learner.learner import LEFT_OUT, Learner, LearnerSettings, Member
from learner.objectives import Objective
from learner.objectives.denoising import WeightedDenoising
from learner.old_policy import OldPolicy
from learner.optimizer import CheckedOptimizer
from learner.report import UpdateReport


class DenoisingLearner(Learner):
    """A Learner of weighted denoising losses; see Learner for what all ranks have in common.

    Where the objective has an old policy, its weights are the learner's averages: what actors sample with,
    and what checkpoints keep beside the trained weights. A stale or recorded group is learned like any other.
    """

    def __init__(
        self,
        engine: DenoisingEngine,
        objective: WeightedDenoising,
        optimizer: CheckedOptimizer,
        old_policy: OldPolicy,
        settings: LearnerSettings,
    ) -> None:
        # Of the objective the base asks what every one has: `accumulate` is this class's own.
        super().__init__(engine, cast(Objective, objective), optimizer, old_policy, settings)
        self._denoising = objective
        self._plain = self._with_old = engine
        self._pairs = objective.section.pairs_per_image
        self._waves: list[list[Member]] = []
        self._held: HeldWeights | None = None
        if objective.old_decay(0) is not None:
            self._ema = {name: value.detach().clone() for name, value in self._parameters.items()}
            self._held = HeldWeights(self._policy, self._parameters, self._ema)
            self._with_old = replace(engine, old=self._held)

    @property
    def sampling_weights(self) -> Tensors:
        """The old policy's, where there is one."""
        return self._parameters if self._held is None else self._held.held

    def accumulate(self, groups: Sequence[ScoredGroup]) -> None:
        """See Learner."""
        for group in groups:
            self._check(group)
        members = self._regress([Member(group=group) for group in groups])
        if self._settings.updates_per_epoch > 1:
            self._waves.append(members)

    def repeat_update(self) -> UpdateReport:
        """See Learner. With other noise levels and other noise."""
        self._waves = [self._regress(members) for members in self._waves]
        return self.finish_update()

    def end_epoch(self) -> None:
        """See Learner. The old policy follows."""
        super().end_epoch()
        self._waves = []
        decay = self._denoising.old_decay(self._version)
        if decay is not None:
            with torch.no_grad():
                for name, old in self._ema.items():
                    old.lerp_(self._parameters[name], 1 - decay)

    def reset_epoch(self) -> None:
        """See Learner."""
        super().reset_epoch()
        self._waves = []

    def _average(self) -> None:
        if self._held is None:
            super()._average()

    def _regress(self, members: list[Member]) -> list[Member]:
        """Add a wave's gradient. Returns its members, bad ones marked."""
        started = Stopwatch.now()
        weights = [self._denoising.image_weights(one.group.score, one.group.advantages) for one in members]
        tables = [one.coefficients(self._pairs) for one in weights]
        finite = [bool(torch.isfinite(table).all()) for table in tables]
        reasons = [
            LEFT_OUT if member.is_bad else "" if is_finite else "the images' weights not finite"
            for member, is_finite in zip(members, finite, strict=True)
        ]
        counted = [
            torch.zeros_like(table) if why else table for table, why in zip(tables, reasons, strict=True)
        ]
        found = self._pass_items([member.group for member in members], counted)
        reasons = self._judge(reasons, found, "the denoising losses not finite")
        losses = [self._denoising.loss(*pair) for pair in zip(weights, found, strict=True)]
        after = self._count(members, [(loss, None) for loss in losses], reasons)
        self._tally = self._tally.with_work(started.until_now())
        return after

    def _pass_items(self, groups: Sequence[ScoredGroup], coefficients: Sequence[Tensor]) -> list[Tensor]:
        """Add the gradient of the items that have a coefficient, float64 (B, pairs, 4) by group.

        Returns their values in the same shape, 0 elsewhere. Noise is drawn anew for each update, which its
        version names.
        """
        table = torch.cat([torch.zeros(0, 4).double(), *(one.flatten(0, 1) for one in coefficients)])
        (chosen,) = torch.nonzero(table.any(1), as_tuple=True)
        # The old policy takes no pass where it is the policy as it is.
        is_current = self._held is None or self._held.is_current()
        engine = self._plain if is_current else self._with_old
        others = sum(one is not None for one in (engine.old, engine.reference))
        self._count_passes(forward=others * len(chosen), gradient=len(chosen))
        wave = None
        if groups:
            trajectories, device = [group.trajectory for group in groups], self._policy.family.device
            wave = noised_wave(trajectories, self._version, self._pairs, engine.levels.count, device)
        values = engine.accumulate(wave, table, chosen)
        return wave.by_group(values) if wave else []
