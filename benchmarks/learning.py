"""The learner's gradient pass over bare forward and backward passes."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass

import torch

from actors.sampler import sample_group
from benchmarks.bare import BareGradient
from benchmarks.machine import Machine
from benchmarks.options import Options, run
from benchmarks.report import Result, raw_of, verdict_of
from benchmarks.timing import Comparison, alternate
from common.config.schema import Config
from common.config.training import FullPolicy, LoraPolicy
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.steps import Steps
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.run.prompts import PromptStream, open_prompts
from learner.gradient import TrajectoryTensors, accumulate_by_step, accumulate_gradient

TARGET = 0.95
LORA = LoraPolicy()
POLICIES: tuple[FullPolicy | LoraPolicy, ...] = (FullPolicy(), LORA)
ABOUT = (
    "(image, step) pairs per second of the learner's gradient pass over those of bare forward and backward "
    "passes of the same UNet (mean square of its output) on as many pairs in the same micro-batches, with "
    "the threads of one learner rank. Guidance is 1: a guided pass predicts twice for each pair on either "
    "side."
)


@dataclass(frozen=True)
class Learning:
    """One kind of policy. by_step_cost: CPU time with the norms of each step over that without."""

    comparison: Comparison
    by_step_cost: float


def sampled_tensors(config: Config, policy: Policy, distribution: Steps) -> TrajectoryTensors:
    """One prompt's trajectories as the learner holds them."""
    prompt = PromptStream(open_prompts(config.prompts.train), config.run.seed).at(0)
    stamp = PolicyStamp(version=0, digest="", run_id="benchmark")
    noise = NoiseKey(config.run.seed, "train", 0, 0)
    task = PromptTask(prompt, config.sampling.images_per_prompt, noise, stamp, with_reference=False)
    group, _ = sample_group(task, policy, policy, distribution)
    return TrajectoryTensors.of(group, policy.family.device)


def bare_gradient(
    config: Config, policy: Policy, distribution: Steps, tensors: TrajectoryTensors
) -> BareGradient:
    """The same pairs, step by step, as plain tensors."""
    steps = torch.tensor(distribution.stochastic_steps, device=tensors.latents.device)
    return BareGradient(
        unet=policy.guided.unet,
        latents=tensors.latents[tensors.nodes[:, steps].T.flatten()],
        timesteps=distribution.time(steps, len(steps)).repeat_interleave(tensors.images),
        condition=tensors.condition["encoder_hidden_states"][:1],
        micro_batch=config.learner.micro_batch_size,
        autocast=config.model.precision == "bfloat16",
    )


def measure_policy(config: Config, repeats: int, warm_ups: int) -> Learning:
    """Compare for the configuration's kind of policy."""
    policy, distribution = load_policy(config)
    tensors = sampled_tensors(config, policy, distribution)
    bare = bare_gradient(config, policy, distribution, tensors)
    micro_batch = config.learner.micro_batch_size
    shape = (config.sampling.images_per_prompt, len(distribution.stochastic_steps))
    coefficients = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(shape, dtype=torch.bool)
    parameters = list(policy.trainable.parameters().values())
    sides = [
        lambda _: accumulate_gradient(policy, distribution, tensors, coefficients, everything, micro_batch),
        lambda _: bare.accumulate(),
        lambda _: accumulate_by_step(policy, distribution, tensors, coefficients, micro_batch, parameters),
    ]
    ours, bare_times, by_step = alternate(sides, repeats, warm_ups, policy.family.device)
    comparison = Comparison(
        what=f"gradient pass over bare forward and backward, {config.policy.kind}",
        items=shape[0] * shape[1],
        unit="(image, step) pairs",
        ours=ours,
        bare=bare_times,
        target=TARGET,
    )
    return Learning(comparison, statistics.median(by_step.cpu) / statistics.median(ours.cpu))


def measure(options: Options) -> Result:
    """Measure for full finetuning and for LoRA, both at guidance 1."""
    config = options.config
    torch.set_num_threads(config.learner.threads)
    machine = Machine.here()
    sampling = config.sampling.model_copy(update={"guidance_scale": 1.0})
    configs = [config.model_copy(update={"policy": policy, "sampling": sampling}) for policy in POLICIES]
    found = {one.policy.kind: measure_policy(one, options.repeats, options.warm_ups) for one in configs}
    return Result(
        name="learning",
        command=options.command,
        settings={
            "model": config.model.path,
            "images": config.sampling.images_per_prompt,
            "stochastic steps": str(config.sampling.stochastic_steps),
            "micro-batch": config.learner.micro_batch_size,
            "LoRA rank": LORA.rank,
            "threads": config.learner.threads,
        },
        machine=machine,
        verdicts=tuple(verdict_of(one.comparison) for one in found.values()),
        figures={
            **{
                one.comparison.what + ", in CPU time": f"{one.comparison.cpu_ratio:.3f}"
                for one in found.values()
            },
            **{
                f"CPU time with each step's gradient norm, {kind}": f"{one.by_step_cost:.2f} x that without"
                for kind, one in found.items()
            },
        },
        raw={kind: raw_of(one.comparison) for kind, one in found.items()},
    )


if __name__ == "__main__":
    sys.exit(run("learning", ABOUT, repeats=30, measure=measure))
