"""An actor's images per second over a bare diffusers loop's."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler

from actors.actor import Actor
from benchmarks.bare import BareSampler, plain_pipeline
from benchmarks.machine import Machine
from benchmarks.options import Options, run
from benchmarks.report import Result, raw_of, verdict_of
from benchmarks.timing import Comparison, alternate
from common.config.schema import Config
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.weights import Weights
from common.terminal import run_command
from common.trajectory import NoiseKey, PromptTask
from driver.run.prompts import PromptStream, open_prompts

GUIDANCE_SCALES = (1.0, 3.0)
TARGET = 0.95
ABOUT = (
    "An actor's images per second over those of a bare diffusers loop (text encoder, the same UNet, "
    "DDIMScheduler with eta 1, autoencoder) at the same steps, guidance and batch, with the threads of one "
    "actor."
)


@dataclass(frozen=True)
class Sampling:
    """At one guidance scale. reference_cost: CPU time with the reference pass over that without."""

    comparison: Comparison
    reference_cost: float


def actor_calls(
    config: Config, policy: Policy, actor: Actor, prompts: PromptStream
) -> list[Callable[[int], object]]:
    """Sampling turn n without the reference pass, and with it: each turn a prompt and noise of its own."""
    weights = Weights.of(policy.trainable.parameters(), version=1, run_id="benchmark")

    def task(turn: int, with_reference: bool) -> PromptTask:
        noise = NoiseKey(config.run.seed, "train", 0, turn)
        return PromptTask(
            prompts.at(turn), config.sampling.images_per_prompt, noise, weights.stamp, with_reference
        )

    return [
        lambda turn: actor.sample(task(turn, with_reference=False), weights),
        lambda turn: actor.sample(task(turn, with_reference=True), weights),
    ]


def bare_sampler(config: Config, policy: Policy) -> BareSampler:
    """A bare loop over the policy's own UNet."""
    family: Any = policy.family
    return BareSampler(
        pipeline=plain_pipeline(family),
        scheduler=DDIMScheduler.from_config(dict(family.scheduler[1])),
        batch=config.sampling.images_per_prompt,
        steps=config.sampling.steps,
        guidance_scale=config.sampling.guidance_scale,
        device=family.device,
        autocast=config.model.precision == "bfloat16",
    )


def measure_guidance(config: Config, repeats: int, warm_ups: int) -> Sampling:
    """Compare at the configuration's guidance scale."""
    policy, steps = load_policy(config)
    actor = Actor.of(policy, steps)
    prompts = PromptStream(open_prompts(config.prompts.train), config.run.seed)
    bare = bare_sampler(config, policy)
    without, with_reference = actor_calls(config, policy, actor, prompts)
    sides = [without, lambda turn: bare.images(prompts.at(turn), turn), with_reference]
    ours, bare_times, reference = alternate(sides, repeats, warm_ups, policy.family.device)
    comparison = Comparison(
        what=f"actor over bare loop, guidance {config.sampling.guidance_scale:g}",
        items=config.sampling.images_per_prompt,
        unit="images",
        ours=ours,
        bare=bare_times,
        target=TARGET,
    )
    return Sampling(comparison, statistics.median(reference.cpu) / statistics.median(ours.cpu))


def at_guidance(config: Config, scale: float) -> Config:
    """The same configuration at another guidance scale."""
    return config.model_copy(
        update={"sampling": config.sampling.model_copy(update={"guidance_scale": scale})}
    )


def measure(options: Options) -> Result:
    """Measure at each guidance scale."""
    config = options.config
    torch.set_num_threads(config.actors.threads)
    machine = Machine.here()
    found = {
        scale: measure_guidance(at_guidance(config, scale), options.repeats, options.warm_ups)
        for scale in GUIDANCE_SCALES
    }
    return Result(
        name="sampling",
        command=options.command,
        settings={
            "model": config.model.path,
            "policy": config.policy.kind,
            "batch": config.sampling.images_per_prompt,
            "steps": config.sampling.steps,
            "threads": config.actors.threads,
        },
        machine=machine,
        verdicts=tuple(verdict_of(one.comparison) for one in found.values()),
        figures={
            **{
                one.comparison.what + ", in CPU time": f"{one.comparison.cpu_ratio:.3f}"
                for one in found.values()
            },
            **{
                f"CPU time with the reference pass, guidance {scale:g}": f"{one.reference_cost:.2f} x without"
                for scale, one in found.items()
            },
        },
        raw={f"guidance {scale:g}": raw_of(one.comparison) for scale, one in found.items()},
        notes=("An actor also computes log-probabilities and hands over every step's latents.",),
    )


if __name__ == "__main__":
    run_command(lambda arguments: run("sampling", ABOUT, 60, measure, arguments))
