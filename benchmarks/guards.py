"""What the guards cost of an epoch: proof of weights, checks of numbers, copies to undo a step."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.loop import OneProcess
from benchmarks.machine import Machine
from benchmarks.options import Options, run
from benchmarks.report import Result, Verdict
from benchmarks.timing import seconds_of
from common.config.schema import Config
from common.config.training import FullPolicy, LoraPolicy
from common.model.loading import load_policy
from common.model.probe import Probe
from driver.run.prompts import PromptStream, open_prompts
from learner.finite import find_nonfinite_gradient
from learner.optimizer import CheckedOptimizer

ALLOWED = 0.01
RATE = 1e-6
ABOUT = (
    "Seconds that the guards take of an epoch of the quickstart in one process: for each update the "
    "optimizer's step with all that is looked at around it, over the step alone; for each group the check of "
    "its gradient; for each actor the probe of the weights that it loads. With LoRA and with all weights."
)
KINDS = {"lora": LoraPolicy(), "full": FullPolicy()}


@dataclass(frozen=True)
class Cost:
    """Median seconds: a bare step, a guarded one, a check of gradients, a probe, and an epoch."""

    bare_step: float
    guarded_step: float
    check: float
    probe: float
    epoch: float

    def of_epoch(self, config: Config) -> float:
        """Seconds of the guards in an epoch."""
        updates = config.objective.updates_per_epoch
        groups = config.sampling.prompts_per_epoch * updates
        steps = updates * (self.guarded_step - self.bare_step)
        return steps + groups * self.check + config.actors.count * self.probe


def measure_cost(config: Config, repeats: int, warm_ups: int) -> Cost:
    """One kind of policy."""
    one = OneProcess.build(config, PromptStream(open_prompts(config.prompts.train), config.run.seed))
    policy, distribution = load_policy(config)
    parameters = list(policy.trainable.parameters().values())
    for value in parameters:
        value.grad = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    optimizer, probe = torch.optim.AdamW(parameters, lr=RATE), Probe.of(policy, distribution)
    step = CheckedOptimizer(policy, optimizer, probe)
    log_prob = torch.zeros(1, 1)

    def median(call: Callable[[int], object]) -> float:
        taken = [
            seconds_of(lambda turn=turn: call(turn), policy.family.device)[0]  # type: ignore[misc]
            for turn in range(warm_ups + repeats)
        ]
        return statistics.median(taken[warm_ups:])

    return Cost(
        bare_step=median(lambda _: optimizer.step()),
        guarded_step=median(lambda _: step.take(1.0)),
        check=median(lambda _: find_nonfinite_gradient(log_prob, parameters)),
        probe=median(lambda _: probe.output(policy)),
        epoch=median(one.epoch),
    )


def verdict_of_cost(kind: str, cost: Cost, config: Config) -> Verdict:
    """A row."""
    taken = cost.of_epoch(config)
    share = taken / cost.epoch
    return Verdict(
        what=f"share of an epoch, {kind}",
        value=f"{share:.2%}",
        allowed=f"less than {ALLOWED:.0%}",
        met=share < ALLOWED,
        detail=(
            f"{taken * 1e3:.1f} ms of {cost.epoch:.2f} s: a step {cost.guarded_step * 1e3:.2f} instead of "
            f"{cost.bare_step * 1e3:.2f} ms, a check {cost.check * 1e3:.2f} ms, a probe "
            f"{cost.probe * 1e3:.2f} ms"
        ),
    )


def measure(options: Options) -> Result:
    """Measure both kinds."""
    config, machine = options.config, Machine.here()
    torch.set_num_threads(1)
    configs = {kind: config.model_copy(update={"policy": policy}) for kind, policy in KINDS.items()}
    costs = {kind: measure_cost(own, options.repeats, options.warm_ups) for kind, own in configs.items()}
    return Result(
        name="guards",
        command=options.command,
        settings={
            "model": config.model.path,
            "N": config.sampling.prompts_per_epoch,
            "B": config.sampling.images_per_prompt,
            "steps": config.sampling.steps,
            "updates": config.objective.updates_per_epoch,
            "actors": config.actors.count,
            "threads": 1,
        },
        machine=machine,
        verdicts=tuple(verdict_of_cost(kind, cost, config) for kind, cost in costs.items()),
        figures={},
        raw={kind: vars(cost) for kind, cost in costs.items()},
    )


if __name__ == "__main__":
    sys.exit(run("guards", ABOUT, repeats=3, measure=measure))
