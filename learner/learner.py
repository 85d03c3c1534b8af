"""The learner: a plain class that turns scored groups into the next version of the weights.

consumes: ScoredGroup. produces: UpdateReport, Weights. waits for: its peers, inside
finish_update. unblocked by: the driver, which hands over groups in prompt order so that sums have one order
of addition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common.cluster.process_name import process_name
from common.errors import WeightsError
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.weights import Tensors, Weights, digest_tensors
from common.stopwatch import Stopwatch
from common.trajectory import Float32, PolicyStamp, ScoredGroup, TrajectoryGroup
from learner.finite import find_nonfinite_gradient, find_nonfinite_loss
from learner.gradient import TrajectoryTensors, accumulate_by_step, accumulate_gradient, evaluate_log_prob
from learner.objectives import Objective, ObjectiveResult
from learner.old_policy import Experience
from learner.optimizer import CheckedOptimizer
from learner.parallel import Ranks
from learner.records import KeptGroup, LearnerFacts, LearnerSettings
from learner.report import BadGroup, Outcome, Tally, UpdateReport, summarise


class Learner:
    """Applies proximal reward difference updates to the policy (Algorithm 1, lines of the inner loop)."""

    def __init__(
        self,
        policy: Policy,
        distribution: Steps,
        objective: Objective,
        step: CheckedOptimizer,
        experience: Experience,
        ranks: Ranks,
        settings: LearnerSettings,
    ) -> None:
        self._policy = policy
        self._distribution = distribution
        self._objective = objective
        self._step = step
        self._experience = experience
        self._ranks = ranks
        self._settings = settings
        self._parameters = policy.trainable.parameters()
        self._ema = (
            {name: value.detach().clone() for name, value in self._parameters.items()}
            if settings.ema_decay
            else {}
        )
        self._schedule = policy.schedule(distribution)
        self._version = 0
        self._stamp = PolicyStamp(version=-1, digest="", run_id=settings.run_id)
        self._kept: list[KeptGroup] = []
        self._tally = Tally.zero()

    @property
    def facts(self) -> LearnerFacts:
        """What it is, and what trajectories must fit."""
        family = self._policy.family
        return LearnerFacts(
            schedule=self._schedule,
            latent_shape=family.latent_shape,
            is_exact=family.device.type == "cpu",
            base=self._settings.base,
            process=process_name(),
            nbytes=sum(value.nbytes for value in self._parameters.values()),
        )

    @property
    def version(self) -> int:
        """Optimizer updates so far."""
        return self._version

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained tensors, live."""
        return self._parameters

    @property
    def averages(self) -> dict[str, Tensor]:
        """Exponential moving averages by name; empty where ema_decay is 0."""
        return self._ema

    @property
    def experience(self) -> Experience:
        """Whose trajectories are accepted."""
        return self._experience

    @property
    def run_id(self) -> str:
        """The run that the weights are of."""
        return self._settings.run_id

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the trained tensors, in the order of `parameters`."""
        return self._step.optimizer

    def publish(self) -> Weights:
        """The current weights, stamped; trajectories sampled with them are accepted from now on.

        On a CPU the arrays are the live tensors' memory: copy them, or hand them on, before training goes on.
        """
        weights = Weights.of(self._parameters, self._version, self._settings.run_id)
        self._accept(weights.stamp)
        return weights

    def agree(self) -> PolicyStamp:
        """`publish` where another rank hands out the weights: the stamp alone."""
        stamp = PolicyStamp(self._version, digest_tensors(self._parameters), self._settings.run_id)
        self._accept(stamp)
        return stamp

    def _accept(self, stamp: PolicyStamp) -> None:
        self._stamp = stamp
        self._experience.published(stamp)

    def accumulate(self, group: ScoredGroup) -> None:
        """Add one prompt's gradient for the epoch's first update.

        A group with a number that is not finite is left out of all the epoch's updates, and the first of them
        is skipped. Raises WeightsError on a foreign group.
        """
        started = Stopwatch.now()
        trajectory, device = group.trajectory, self._policy.family.device
        self._check(group)
        tensors = TrajectoryTensors.of(trajectory, device)
        differences = torch.from_numpy(group.score.differences.copy())
        behaviour = (
            torch.from_numpy(trajectory.log_prob.copy()),
            torch.from_numpy(_log_ratio(trajectory).copy()).double(),
        )
        on_policy = trajectory.stamp == self._stamp
        log_prob, log_ratio = behaviour if on_policy else self._off_policy(tensors, behaviour)
        log_prob_old, log_ratio_old = self._experience.anchor(behaviour, (log_prob, log_ratio))
        coefficients, result = self._differentiate(log_ratio, log_ratio_old, differences)
        reason = find_nonfinite_loss(log_ratio, result, coefficients)
        own, norms = self._first_gradient(tensors, coefficients) if not reason else (log_prob, torch.zeros(0))
        reason = reason or find_nonfinite_gradient(own, self._parameters.values())
        if reason:
            self._leave_out(BadGroup(trajectory.prompt, trajectory.noise, reason), started)
            return
        before = own if on_policy else log_prob_old
        kept = KeptGroup(trajectory.prompt, trajectory.noise, tensors, differences, before, log_ratio_old)
        self._kept.extend([kept] if self._settings.keep_groups else [])
        mismatch = float((own - behaviour[0]).abs().max()) if on_policy else 0.0
        self._tally = self._tally.with_group(result, log_ratio, mismatch, norms, started.until_now())

    def repeat_update(self) -> UpdateReport:
        """Update 2..K of an epoch: the same groups under the weights as they are now. Needs keep_groups."""
        groups, self._kept = self._kept, []
        for kept in groups:
            self._repeat(kept)
        return self.finish_update()

    def _repeat(self, kept: KeptGroup) -> None:
        """Add the gradient of a group seen before, and keep it, unless a number of it is not finite."""
        started, limit = Stopwatch.now(), self._settings.micro_batch
        log_prob = evaluate_log_prob(self._policy, self._distribution, kept.tensors, limit)
        log_ratio = kept.log_ratio_old + (log_prob - kept.log_prob_old)
        coefficients, result = self._differentiate(log_ratio, kept.log_ratio_old, kept.differences)
        reason = find_nonfinite_loss(log_ratio, result, coefficients)
        if not reason:
            # The clip leaves many pairs without a gradient: their items need no backward pass.
            accumulate_gradient(
                self._policy, self._distribution, kept.tensors, coefficients, coefficients != 0, limit
            )
            reason = find_nonfinite_gradient(log_prob, self._parameters.values())
        if reason:
            self._leave_out(BadGroup(kept.prompt, kept.noise, reason), started)
            return
        self._kept.append(kept)
        self._tally = self._tally.with_group(result, log_ratio, 0.0, torch.zeros(0), started.until_now())

    def _leave_out(self, group: BadGroup, started: Stopwatch) -> None:
        """The update is skipped, so what has accumulated is of no use; without it, later groups are judged by
        themselves."""
        self._step.optimizer.zero_grad(set_to_none=True)
        self._tally = self._tally.with_bad_group(group, started.until_now())

    def finish_update(self) -> UpdateReport:
        """Sum over ranks, divide by the number of pairs, clip, step.

        An update with nothing to learn or with a number that is not finite is skipped: weights and optimizer
        stay as they were. Raises WeightsError where the trained weights act on nothing.
        """
        started = Stopwatch.now()
        for value in self._parameters.values():
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
        gradients = [value.grad for value in self._parameters.values() if value.grad is not None]
        totals = self._tally.totals.to(gradients[0].device)
        self._ranks.sum_([*gradients, totals])
        norm = self._scale_and_clip(gradients, float(totals[1]))
        for group in self._step.optimizer.param_groups:
            group["lr"] = self._settings.rate.at(self._version)
        outcome = self._step_if_sound(totals, float(norm))
        if outcome is Outcome.APPLIED:
            self._version += 1
            self._average()
        self._step.optimizer.zero_grad(set_to_none=True)
        report = summarise(
            self._tally,
            totals.cpu(),
            float(norm),
            outcome,
            self._version,
            math.prod(self._policy.family.latent_shape),
            process_name(),
            started.until_now(),
        )
        self._tally = Tally.zero()
        return report

    def _step_if_sound(self, totals: Tensor, norm: float) -> Outcome:
        """totals: summed over ranks, so that every rank decides alike."""
        if totals[-1] > 0 or not torch.isfinite(totals[0]):
            return Outcome.BAD_GROUP
        if not totals[1] > 0:
            return Outcome.NOTHING_TO_LEARN
        if not math.isfinite(norm):
            return Outcome.BAD_GRADIENT
        return Outcome.APPLIED if self._step.take(norm) else Outcome.BAD_WEIGHTS

    def end_epoch(self) -> None:
        """Forget the epoch's groups."""
        self._kept = []

    def reset_epoch(self) -> None:
        """Forget what was accumulated since the last update: the epoch's groups come again from the first."""
        self._step.optimizer.zero_grad(set_to_none=True)
        self._kept = []
        self._tally = Tally.zero()

    def restore(self, parameters: Tensors, averages: Tensors, version: int) -> None:
        """Take over the weights of a checkpoint, and averages by the names of `averages`.

        The optimizer's state is restored by learner.state, which checks the names.
        """
        self._policy.load(parameters)
        self._version = version
        for name, value in averages.items():
            self._ema[name].copy_(value)

    def save_policy(self, folder: Path) -> None:
        """Write the current weights as plain diffusers reads them."""
        self._policy.trainable.save(folder)

    def _check(self, group: ScoredGroup) -> None:
        self._experience.check(group.trajectory.stamp)
        if group.trajectory.schedule != self._schedule:
            raise WeightsError(
                f"A trajectory of prompt {group.trajectory.prompt!r} was sampled from another step "
                "distribution or guidance than the learner's: steps, eta, stochastic steps, guidance scale "
                "and scheduler must agree."
            )

    def _off_policy(
        self, tensors: TrajectoryTensors, behaviour: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        log_prob = evaluate_log_prob(self._policy, self._distribution, tensors, self._settings.micro_batch)
        return log_prob, behaviour[1] + (log_prob - behaviour[0])

    def _differentiate(
        self, log_ratio: Tensor, old: Tensor, differences: Tensor
    ) -> tuple[Tensor, ObjectiveResult]:
        """c = d loss_sum / d log pi_theta, float64 (B, T_s)."""
        leaf = log_ratio.detach().clone().requires_grad_(True)
        result = self._objective(leaf, old, differences)
        (coefficients,) = torch.autograd.grad(result.loss_sum, leaf)
        return coefficients, result

    def _first_gradient(self, tensors: TrajectoryTensors, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of all items; of the update's first group step by step, which also gives their norms."""
        if self._tally.is_empty:
            return accumulate_by_step(
                self._policy,
                self._distribution,
                tensors,
                coefficients,
                self._settings.micro_batch,
                list(self._parameters.values()),
            )
        everything = torch.ones_like(coefficients, dtype=torch.bool)
        own = accumulate_gradient(
            self._policy, self._distribution, tensors, coefficients, everything, self._settings.micro_batch
        )
        return own, torch.zeros(0)

    def _scale_and_clip(self, gradients: Sequence[Tensor], pairs: float) -> Tensor:
        for gradient in gradients:
            gradient.div_(max(pairs, 1.0))
        return nn.utils.clip_grad_norm_(list(self._parameters.values()), self._settings.max_gradient_norm)

    @torch.no_grad()
    def _average(self) -> None:
        for name, average in self._ema.items():
            average.lerp_(self._parameters[name], 1 - self._settings.ema_decay)


def _log_ratio(trajectory: TrajectoryGroup) -> Float32:
    if trajectory.log_ratio is None:
        raise WeightsError(
            f"A trajectory of prompt {trajectory.prompt!r} has no log ratios to the reference."
        )
    return trajectory.log_ratio
