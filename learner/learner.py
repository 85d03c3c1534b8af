"""The learner: a plain class that turns scored groups into the next version of the weights.

consumes: ScoredGroup. produces: UpdateReport, published weights. waits for: its peers, by way of Parallel.
unblocked by: the driver, which hands over waves of groups in prompt order so that sums have one order of
addition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.cluster.process_name import process_name
from common.errors import WeightsError
from common.model.weights import Tensors, Weights, digest_tensors
from common.passes import Passes
from common.stopwatch import Stopwatch
from common.trajectory import PolicyStamp, ScoredGroup
from learner.gradient import GradientEngine, Wave
from learner.objectives import LogProbs, Loss, Objective, statistic_names
from learner.old_policy import OldPolicy
from learner.optimizer import CheckedOptimizer, find_nonfinite_loss
from learner.report import BadGroup, LearnerFacts, Tally, Totals, UpdateOutcome, UpdateReport
from learner.subsampling import thin


@dataclass(frozen=True)
class LearnerSettings:
    """Plain values.

    run_id: the run that the weights are of. max_gradient_norm: L2. ema_decay: 0 = off. updates_per_epoch: K.
    step_norms_every: epochs between those whose gradient is also measured step by step; 0 = never. base:
    digest of the pretrained model, see digest_base. term_share: see learner.subsampling; 1 = the exact
    gradient.
    """

    run_id: str
    max_gradient_norm: float
    ema_decay: float
    updates_per_epoch: int
    step_norms_every: int
    base: str
    term_share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Member:
    """A group of a wave. Its trajectories stay on the host.

    is_bad: left out of the epoch's updates; it keeps its place in the wave, so that the passes of the others
    stay the same.
    """

    group: ScoredGroup
    is_bad: bool = False


@dataclass(frozen=True, kw_only=True)
class _WithOldAndRef(Member):
    """old, ref: log-probs (B, T_s), see LogProbs."""

    old: Tensor
    ref: Tensor | None


M = TypeVar("M", bound=Member)
_Term = tuple[LogProbs, Loss, Tensor]
"""What a group's loss was taken of, the loss, and its derivatives (B, T_s) with respect to log pi_theta."""

LEFT_OUT = "left out since an earlier update"


class Learner:
    """Updates the policy (Algorithm 1, lines of the inner loop) by any objective on log-probs; by others see
    DenoisingLearner.

    All ranks call the same methods in the same order, each `accumulate` with its own part of a wave.
    """

    def __init__(
        self,
        engine: GradientEngine,
        objective: Objective,
        optimizer: CheckedOptimizer,
        old_policy: OldPolicy,
        settings: LearnerSettings,
    ) -> None:
        self._policy = optimizer.policy
        self._engine = engine
        self._parallel = engine.parallel
        self._objective = objective
        self._optimizer = optimizer
        self._old_policy = old_policy
        self._settings = settings
        self._parameters = self._policy.trainable.parameters()
        self._ema = (
            {name: value.detach().clone() for name, value in self._parameters.items()}
            if settings.ema_decay
            else {}
        )
        self._steps_fingerprint = self._policy.steps_fingerprint(engine.steps)
        self._version = 0
        self._stamp = PolicyStamp(version=-1, digest="", run_id=settings.run_id)
        self._kept: list[list[_WithOldAndRef]] = []
        self._nothing = Tally(Totals.zero(statistic_names(objective), engine.steps.num_steps))
        self._tally = self._nothing

    @property
    def facts(self) -> LearnerFacts:
        """What it is, and what trajectories must fit."""
        family = self._policy.family
        return LearnerFacts(
            steps_fingerprint=self._steps_fingerprint,
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
    def sampling_weights(self) -> Tensors:
        """What actors are to sample with, live: the trained tensors."""
        return self._parameters

    @property
    def publishes_trained(self) -> bool:
        """Whether these are the trained tensors."""
        return self.sampling_weights is self._parameters

    @property
    def old_policy(self) -> OldPolicy:
        """Whose trajectories are accepted."""
        return self._old_policy

    @property
    def run_id(self) -> str:
        """The run that the weights are of."""
        return self._settings.run_id

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the trained tensors, in the order of `parameters`."""
        return self._optimizer.optimizer

    def publish(self) -> Weights:
        """The current weights, stamped; trajectories sampled with them are accepted from now on.

        On a CPU the arrays are the live tensors' memory: copy them, or hand them on, before training goes on.
        """
        weights = Weights.of(self.sampling_weights, self._version, self._settings.run_id)
        self._accept(weights.stamp)
        return weights

    def agree(self) -> PolicyStamp:
        """`publish` where another rank hands out the weights: the stamp alone."""
        stamp = PolicyStamp(self._version, digest_tensors(self.sampling_weights), self._settings.run_id)
        self._accept(stamp)
        return stamp

    def _accept(self, stamp: PolicyStamp) -> None:
        self._stamp = stamp
        self._old_policy.published(stamp)

    def accumulate(self, groups: Sequence[ScoredGroup]) -> None:
        """Add the gradient of this rank's groups of a wave, for the epoch's first update. There may be none.

        A group with a number that is not finite is left out of all the epoch's updates, and the first of them
        is skipped. Raises WeightsError on a foreign group.
        """
        for group in groups:
            self._check(group)
        started = Stopwatch.now()
        wave = self._wave(groups)
        on_policy = [group.trajectory.stamp == self._stamp for group in groups]
        sampled = [torch.tensor(group.trajectory.log_prob) for group in groups]
        # At unchanged weights the actors' log-probs are the learner's, so one update needs no further pass.
        # With more of them, what later updates are clipped around comes from the same passes as they do.
        needs_pass = self._settings.updates_per_epoch > 1 or not all(on_policy)
        evaluated = self._evaluate(wave if needs_pass else None)
        now = evaluated or sampled
        members = []
        for group, current, theirs, is_on in zip(groups, now, sampled, on_policy, strict=True):
            old = current if is_on else self._old_policy.log_prob(theirs, current)
            ref = _reference(group, current if is_on else theirs)
            members.append(_WithOldAndRef(group=group, old=old, ref=ref))
        due = self._step_norms_are_due()
        members, found = self._learn(wave, members, now, due)
        ours = evaluated or found
        for member, log_prob, theirs, is_on in zip(members, ours, sampled, on_policy, strict=True):
            if is_on and not member.is_bad:
                self._tally = self._tally.with_mismatch(float((log_prob - theirs).abs().max()))
        if self._settings.updates_per_epoch > 1:
            self._kept.append(members)
        self._tally = self._tally.with_work(started.until_now())

    def repeat_update(self) -> UpdateReport:
        """Update 2..K of an epoch: the same waves under the weights as they are now."""
        for number, members in enumerate(self._kept):
            started = Stopwatch.now()
            wave = self._wave([member.group for member in members])
            self._kept[number], _ = self._learn(wave, members, self._evaluate(wave), by_step=False)
            self._tally = self._tally.with_work(started.until_now())
        return self.finish_update()

    def finish_update(self) -> UpdateReport:
        """Sum over ranks, divide by the loss's weight, clip, step.

        An update with nothing to learn or with a number that is not finite is skipped: weights and optimizer
        stay as they were. Raises WeightsError where the step made weights that are not finite, or weights
        that act on nothing.
        """
        started = Stopwatch.now()
        parameters = list(self._parameters.values())
        for value in parameters:
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
        self._parallel.sum_gradients(parameters)
        # A copy: the sum is taken in place, and an empty tally is used again.
        vector = self._tally.totals.vector.to(parameters[0].device, copy=True)
        self._parallel.sum_(vector)
        totals = replace(self._tally.totals, vector=vector.cpu())
        for value in parameters:
            value.grad.div_(max(totals.weight, 1.0))  # type: ignore[union-attr]
        norm = float(self._parallel.clip(parameters, self._settings.max_gradient_norm))
        outcome = _outcome(totals, norm)
        if outcome is UpdateOutcome.APPLIED:
            self._optimizer.step(self._version, norm)
            self._version += 1
            self._average()
        self._optimizer.forget_gradients()
        tally, self._tally = self._tally.with_work(started.until_now()), self._nothing
        return UpdateReport(
            version=self._version,
            outcome=outcome,
            bad_groups=tally.bad_groups,
            loss=totals.loss / max(totals.weight, 1.0),
            stats=totals.stats,
            gradient_norm=norm,
            groups=tally.groups,
            log_ratio_mean=totals.log_ratio_mean,
            log_ratio_shares=totals.log_ratio_shares,
            latent_elements=math.prod(self._policy.family.latent_shape),
            log_ratio_mismatch=tally.mismatch,
            step_gradient_norms=tally.step_norms,
            process=process_name(),
            busy=tally.busy,
            passes=round(tally.passes.cost()),
        )

    def end_epoch(self) -> None:
        """Forget the epoch's groups."""
        self._kept = []

    def reset_epoch(self) -> None:
        """Forget what was accumulated since the last update: the epoch's groups come again from the first."""
        self._optimizer.forget_gradients()
        self._kept = []
        self._tally = self._nothing

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
        trajectory = group.trajectory
        self._old_policy.check(trajectory.stamp)
        if trajectory.steps_fingerprint != self._steps_fingerprint:
            raise WeightsError(
                f"A trajectory of prompt {trajectory.prompt!r} was sampled from another step distribution or "
                "guidance than the learner's: steps, eta, stochastic steps, guidance scale and scheduler "
                "must agree."
            )
        if self._objective.needs.steps and not trajectory.has_steps:
            raise WeightsError(
                f"A trajectory of prompt {trajectory.prompt!r} is its x_0 alone, and the objective needs "
                "log-probs: it was sampled for another objective.kind."
            )
        noise = trajectory.noise
        steps = self._engine.steps.during(noise.run_seed, noise.epoch).stochastic_steps
        if trajectory.has_steps and trajectory.stochastic_steps.tolist() != list(steps):
            raise WeightsError(
                f"A trajectory of prompt {trajectory.prompt!r} draws noise at the steps "
                f"{trajectory.stochastic_steps.tolist()}; in epoch {noise.epoch} they are {list(steps)}."
            )
        if trajectory.log_ratio is None and self._objective.needs.reference:
            raise WeightsError(
                f"A trajectory of prompt {trajectory.prompt!r} has no log ratios to the reference, which the "
                "objective needs: it was sampled for another objective.kind."
            )

    def _wave(self, groups: Sequence[ScoredGroup]) -> Wave | None:
        trajectories = [group.trajectory for group in groups]
        wave = Wave.of(trajectories, self._policy.family.device) if trajectories else None
        if self._engine.reference is not None:
            self._count_passes(forward=wave.size if wave else 0)
        return self._engine.with_reference(wave)

    def _step_norms_are_due(self) -> bool:
        """For the first wave of every so many epochs. A function of the version: ranks and restarts agree."""
        settings = self._settings
        if not settings.step_norms_every or self._tally.busy:
            return False
        return self._version // settings.updates_per_epoch % settings.step_norms_every == 0

    def _learn(
        self, wave: Wave | None, members: list[_WithOldAndRef], now: list[Tensor], by_step: bool
    ) -> tuple[list[_WithOldAndRef], list[Tensor]]:
        """Add a wave's gradient. Returns its members, bad ones marked, and log pi_theta of each, (B, T_s).

        now: log-probs that the loss is taken at, and that are given back where nothing passes. by_step:
        measure each step.
        """
        terms = [self._differentiate(member, values) for member, values in zip(members, now, strict=True)]
        reasons = [
            LEFT_OUT if member.is_bad else find_nonfinite_loss(*term)
            for member, term in zip(members, terms, strict=True)
        ]
        sound = [None if why else term for term, why in zip(terms, reasons, strict=True)]
        draws = [member.group.trajectory.noise.uniform(self._version) for member in members]
        found, kls, norms = self._add_gradient(wave, sound, draws, now, by_step)
        terms = [(probs, loss.with_kl(*kl), c) for (probs, loss, c), kl in zip(terms, kls, strict=True)]
        reasons = self._judge(reasons, found, "the learner's log-probs not finite")
        after = self._count(members, [(loss, log_probs) for log_probs, loss, _ in terms], reasons)
        if by_step:
            weight = sum(
                term[1].weight for term, member in zip(terms, after, strict=True) if not member.is_bad
            )
            norms = norms / max(weight, 1.0)
            by_position = dict(zip(self._engine.steps.stochastic_steps, norms.tolist(), strict=True))
            self._tally = replace(self._tally, step_norms=by_position)
        return after, found

    def _judge(self, reasons: list[str], found: Sequence[Tensor], told: str) -> list[str]:
        """Why each of a wave's groups is bad, after its gradient was added. reasons: those that are known.

        found: what the passes gave of each group. told: what it is where a number of it is not finite.
        """
        is_finite = self._parallel.all_finite(self._gradients())
        finite = [bool(torch.isfinite(values).all()) for values in found]
        if not all(finite):
            return [why or ("" if fine else told) for why, fine in zip(reasons, finite, strict=True)]
        return reasons if is_finite else [why or "the gradient not finite" for why in reasons]

    def _count(
        self, members: list[M], terms: Sequence[tuple[Loss, LogProbs | None]], reasons: Sequence[str]
    ) -> list[M]:
        """Add a wave's groups to the tally. reasons: why each is bad. Returns them, bad ones marked."""
        after = []
        for member, (loss, log_probs), reason in zip(members, terms, reasons, strict=True):
            if not reason:
                steps = member.group.trajectory.stochastic_steps
                self._tally = self._tally.with_group(loss, log_probs, steps)
            elif not member.is_bad:
                trajectory = member.group.trajectory
                bad = BadGroup(trajectory.prompt, trajectory.noise, reason)
                self._tally = self._tally.with_bad_group(bad)
            after.append(replace(member, is_bad=True) if reason else member)
        if any(now_bad.is_bad and not member.is_bad for now_bad, member in zip(after, members, strict=True)):
            # The update is skipped, so what has accumulated is of no use; without it, later waves are judged
            # by themselves.
            self._optimizer.forget_gradients()
        return after

    def _add_gradient(
        self,
        wave: Wave | None,
        terms: list[_Term | None],
        draws: list[float],
        now: list[Tensor],
        by_step: bool,
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], Tensor]:
        """Pass the items that have a coefficient, or those drawn from them.

        terms: None where a group is bad. Returns by group log pi_theta, `now` elsewhere, and the KLs to the
        reference with which of them are known, see Loss.with_kl; and step norms.
        """
        if wave is None:
            nothing = torch.zeros(0, dtype=torch.float64)
            _, norms = self._pass(None, nothing, torch.zeros(0, dtype=torch.int64), by_step)
            return [], [], norms
        zeros = [torch.zeros_like(values) for values in now]
        sums = wave.sums([zero if term is None else term[2] for zero, term in zip(zeros, terms, strict=True)])
        if wave.to_reference is not None:
            weights = [None if term is None else term[1].kl_weights for term in terms]
            sums += wave.kl_sums([zero if w is None else w for zero, w in zip(zeros, weights, strict=True)])
        at = wave.items[2].cpu()[wave.transitions[0]]
        if self._settings.term_share < 1:
            gains = torch.tensor(self._engine.steps.gains, dtype=torch.float64)
            sums = thin(wave, sums, gains[at], self._settings.term_share, draws)
        chosen = wave.items_of(sums != 0)
        values, norms = self._pass(wave, sums, chosen, by_step)
        found = wave.by_group(values)
        has_passed = wave.by_group(torch.isin(wave.transitions[0], chosen))
        kls = zeros
        if wave.to_reference is not None:
            peaks = torch.tensor(self._engine.steps.peaks, dtype=torch.float64)
            kls = [peaks[at[place]] - values[place] for place in wave.reference_places()]
        known = list(zip(kls, has_passed, strict=True))
        return [torch.where(*entry) for entry in zip(has_passed, found, now, strict=True)], known, norms

    def _evaluate(self, wave: Wave | None) -> list[Tensor]:
        self._count_passes(forward=wave.size if wave else 0)
        return self._engine.evaluate(wave)

    def _count_passes(self, forward: int = 0, gradient: int = 0) -> None:
        """Of items, each of which guidance may pass twice."""
        rows = self._policy.guided.guidance.rows
        self._tally = self._tally.with_passes(Passes(rows * forward, rows * gradient))

    def _pass(self, wave: Wave | None, sums: Tensor, chosen: Tensor, by_step: bool) -> tuple[Tensor, Tensor]:
        self._count_passes(gradient=len(chosen))
        if by_step:
            return self._engine.accumulate_by_step(wave, sums, chosen, list(self._parameters.values()))
        return self._engine.accumulate(wave, sums, chosen), torch.zeros(0)

    def _differentiate(self, member: _WithOldAndRef, now: Tensor) -> _Term:
        """The loss and c = d loss_sum / d log pi_theta, float64 (B, T_s)."""
        leaf = now.detach().clone().requires_grad_(True)
        log_probs = LogProbs(leaf, member.old, member.ref)
        given = member.group.advantages
        advantages = None if given is None else torch.tensor(given)
        loss = self._objective.loss(log_probs, member.group.score, advantages)
        (coefficients,) = torch.autograd.grad(loss.sum, leaf)
        return log_probs, loss, coefficients

    def _gradients(self) -> list[Tensor]:
        return [value.grad for value in self._parameters.values() if value.grad is not None]

    @torch.no_grad()
    def _average(self) -> None:
        for name, average in self._ema.items():
            average.lerp_(self._parameters[name], 1 - self._settings.ema_decay)


def _reference(group: ScoredGroup, log_prob: Tensor) -> Tensor | None:
    """log pi_ref = log pi - log ratio in float64, so that a log ratio of 0 gives a difference of 0.

    log_prob: of the policy that sampled, in the numerics that it will be compared with.
    """
    ratio = group.trajectory.log_ratio
    return None if ratio is None else log_prob - torch.tensor(ratio).double()


def _outcome(totals: Totals, norm: float) -> UpdateOutcome:
    """totals, norm: of all ranks, so that every rank decides alike."""
    if totals.bad_groups or not math.isfinite(totals.loss):
        return UpdateOutcome.BAD_GROUP
    if not totals.weight > 0:
        return UpdateOutcome.NOTHING_TO_LEARN
    return UpdateOutcome.APPLIED if math.isfinite(norm) else UpdateOutcome.BAD_GRADIENT
