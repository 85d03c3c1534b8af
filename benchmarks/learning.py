"""The learner's gradient pass over bare forward and backward passes."""

from __future__ import annotations

import statistics
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
from common.terminal import run_command
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.run.prompts import PromptStream, open_prompts
from learner.build import build_engine
from learner.gradient import Wave
from learner.parallel import Single

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


def sampled_wave(config: Config, policy: Policy, steps: Steps) -> Wave:
    """One prompt's trajectories as the learner holds them."""
    prompt = PromptStream(open_prompts(config.prompts.train), config.run.seed).at(0)
    stamp = PolicyStamp(version=0, digest="", run_id="benchmark")
    noise = NoiseKey(config.run.seed, "train", 0, 0)
    task = PromptTask(prompt, config.sampling.images_per_prompt, noise, stamp, with_reference=False)
    group, _ = sample_group(task, policy, None, steps)
    return Wave.of([group], policy.family.device)


def bare_gradient(config: Config, policy: Policy, steps: Steps, wave: Wave) -> BareGradient:
    """The same pairs, step by step, as plain tensors."""
    rows, _, at = wave.items
    return BareGradient(
        unet=policy.guided.network,
        latents=wave.latents[rows],
        timesteps=steps.time(at, len(at)),
        condition=wave.condition["encoder_hidden_states"][0],
        micro_batch=config.learner.micro_batch_size,
        autocast=config.model.precision == "bfloat16",
    )


def measure_policy(config: Config, repeats: int, warm_ups: int) -> Learning:
    """Compare for the configuration's kind of policy."""
    policy, steps = load_policy(config)
    wave = sampled_wave(config, policy, steps)
    bare = bare_gradient(config, policy, steps, wave)
    engine = build_engine(policy, steps, Single(), config.learner.micro_batch_size)
    everything = torch.arange(wave.size)
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(wave.transitions.shape[1], dtype=torch.float64, generator=generator)
    parameters = list(policy.trainable.parameters().values())
    sides = [
        lambda _: engine.accumulate(wave, coefficients, everything),
        lambda _: bare.accumulate(),
        lambda _: engine.accumulate_by_step(wave, coefficients, everything, parameters),
    ]
    ours, bare_times, by_step = alternate(sides, repeats, warm_ups, policy.family.device)
    comparison = Comparison(
        what=f"gradient pass over bare forward and backward, {config.policy.kind}",
        items=wave.size,
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
    run_command(lambda arguments: run("learning", ABOUT, 30, measure, arguments))
