"""Stable Diffusion 1.5's shape on a GPU: images/s sampled and learned, the UNet's share of the time."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import DDIMScheduler

from actors.actor import Actor
from benchmarks.bare import BareGradient, BareSampler, plain_pipeline
from benchmarks.machine import Machine
from benchmarks.options import at_least_one, command_of, out_folder
from benchmarks.report import RESULTS, Result
from benchmarks.sd15_shape import SD15, TINY, Shape, random_family
from benchmarks.timing import Seconds, alternate
from common.config.training import LoraPolicy, ModelSection
from common.model.policy import Policy
from common.model.schedules import ddim_steps
from common.model.steps import Chosen, Steps
from common.model.weights import Weights
from common.terminal import complain, run_command
from common.trajectory import NoiseKey, PromptTask
from learner.build import build_engine
from learner.gradient import Wave
from learner.parallel import Single

PROMPT = "a photo of an astronaut riding a horse on mars"
ABOUT = (
    "Images per second that an actor samples and the learner's gradient pass takes in, with a LoRA policy "
    "on Stable Diffusion 1.5's UNet, text encoder and autoencoder with random weights, in bfloat16, 512 x "
    "512 pixels; and the UNet's share of the time. Needs a CUDA GPU with about 48 GB, or "
    "smaller micro-batches."
)


@dataclass(frozen=True)
class Setting:
    """images: B; steps: T; micro_batch: (image, step) pairs a pass."""

    shape: Shape
    device: torch.device
    images: int
    steps: int
    guidance_scale: float
    micro_batch: int


@dataclass
class UnetClock:
    """Sums the seconds of the UNet's forward passes, by events on a GPU."""

    device: torch.device
    marks: list[Any] = field(default_factory=list)

    def attach(self, unet: torch.nn.Module) -> list[Any]:
        """Start counting. Returns the handles to remove."""
        return [
            unet.register_forward_pre_hook(lambda *_: self.marks.append(self._mark())),
            unet.register_forward_hook(lambda *_: self.marks.append(self._mark())),
        ]

    def seconds(self) -> float:
        """Of all passes so far."""
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=True))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return sum(start.elapsed_time(end) for start, end in pairs) / 1000.0
        return float(sum(end - start for start, end in pairs))

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Work:
    """What is timed, each a call with the turn's number."""

    sample: Callable[[int], object]
    sample_bare: Callable[[int], object]
    learn: Callable[[int], object]
    learn_bare: Callable[[int], object]


def make_work(setting: Setting, policy: Policy, steps: Steps) -> Work:
    """Build both sides of both jobs on one policy."""
    family: Any = policy.family
    actor = Actor.of(policy, steps)
    weights = Weights.of(policy.trainable.parameters(), version=0, run_id="benchmark")

    def task(turn: int) -> PromptTask:
        return PromptTask(
            PROMPT, setting.images, NoiseKey(0, "train", 0, turn), weights.stamp, with_reference=False
        )

    bare = BareSampler(
        plain_pipeline(family),
        DDIMScheduler.from_config(dict(family.scheduler[1])),
        setting.images,
        setting.steps,
        setting.guidance_scale,
        setting.device,
        autocast=True,
    )
    group, _, _ = actor.sample(task(0), weights)
    wave = Wave.of([group], setting.device)
    coefficients = torch.randn(wave.transitions.shape[1], dtype=torch.float64)
    everything = torch.arange(wave.size)
    engine = build_engine(policy, steps, Single(), setting.micro_batch)
    least = _bare_gradient(setting, policy, steps, wave)
    return Work(
        sample=lambda turn: actor.sample(task(turn), weights),
        sample_bare=lambda turn: bare.images(PROMPT, turn),
        learn=lambda _: engine.accumulate(wave, coefficients, everything),
        learn_bare=lambda _: least.accumulate(),
    )


def _bare_gradient(setting: Setting, policy: Policy, steps: Steps, wave: Wave) -> BareGradient:
    """Guidance predicts twice for each pair: the bare side has twice as many, in passes of twice the size."""
    passes = 1 if setting.guidance_scale == 1.0 else 2
    rows, _, at = wave.items
    return BareGradient(
        unet=policy.guided.network,
        latents=wave.latents[rows].repeat_interleave(passes, 0),
        timesteps=steps.time(at, len(at)).repeat_interleave(passes),
        condition=wave.condition["encoder_hidden_states"][0],
        micro_batch=setting.micro_batch * passes,
        autocast=True,
    )


def measure(setting: Setting, repeats: int, warm_ups: int, command: str) -> Result:
    """Time sampling and learning against their bare sides; then the UNet's share of one sampling."""
    machine = Machine.here()
    family = random_family(setting.shape, setting.device)
    model = ModelSection(path="random", precision="bfloat16")
    policy = Policy.build(family, LoraPolicy(), setting.guidance_scale, model)
    chosen = Chosen(range(setting.steps - 1), math.inf)
    steps = ddim_steps(family.scheduler[1], setting.steps, 1.0, chosen)
    work = make_work(setting, policy, replace(steps, device=family.device))
    sample, bare = alternate([work.sample, work.sample_bare], repeats, warm_ups, setting.device)
    learn, least = alternate([work.learn, work.learn_bare], repeats, warm_ups, setting.device)
    clock = UnetClock(setting.device)
    handles = clock.attach(policy.guided.network)
    (watched,) = alternate([work.sample], 1, 0, setting.device)
    for handle in handles:
        handle.remove()
    pixels = setting.shape.vae["sample_size"]
    return Result(
        name="sd15",
        command=command,
        settings={
            "shape": setting.shape.name,
            "pixels": f"{pixels} x {pixels}",
            "images": setting.images,
            "steps": setting.steps,
            "guidance": setting.guidance_scale,
            "micro-batch": setting.micro_batch,
            "precision": "bfloat16",
            "policy": "lora",
        },
        machine=machine,
        verdicts=(),
        figures={
            "sampled": f"{setting.images / statistics.median(sample.wall):.4g} images/s",
            "sampled, over a bare loop": f"{_ratio(bare.wall, sample.wall):.3f}",
            "UNet's share of sampling": f"{clock.seconds() / watched.wall[0]:.1%}",
            "learned": f"{setting.images / statistics.median(learn.wall):.4g} images/s",
            "UNet's share of learning": f"{min(1.0, _ratio(least.wall, learn.wall)):.1%}, from bare passes",
            "largest memory": _largest_memory(setting.device),
        },
        raw={
            "sample_s": list(sample.wall),
            "bare_s": list(bare.wall),
            "learn_s": list(learn.wall),
            "least_s": list(least.wall),
        },
    )


def _ratio(bare: Seconds, ours: Seconds) -> float:
    return statistics.median(bare) / statistics.median(ours)


def _largest_memory(device: torch.device) -> str:
    return (
        f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB"
        if device.type == "cuda"
        else "not measured on a CPU"
    )


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 measured, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sd15", description=ABOUT)
    parser.add_argument(
        "--tiny", action="store_true", help="a miniature, also on a CPU: tries the code, measures nothing"
    )
    parser.add_argument("--images", type=at_least_one, default=8, help="B (default: %(default)s)")
    parser.add_argument("--steps", type=at_least_one, default=50, help="T (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=5.0, help="guidance scale (default: %(default)s)")
    parser.add_argument(
        "--micro-batch", type=at_least_one, default=16, help="pairs a pass (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=at_least_one, default=5, help="timed turns (default: %(default)s)")
    parser.add_argument(
        "--warm-ups", type=at_least_one, default=1, help="turns before them (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=out_folder,
        default=str(RESULTS),
        help="folder of the result files (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        complain(
            "benchmarks.sd15 needs a CUDA GPU, and torch sees none here: an image would take minutes. "
            "--tiny tries the same code on a miniature."
        )
        return 2
    if given.tiny and given.out == RESULTS:
        complain("--tiny measures nothing worth keeping: name another folder with --out.")
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = TINY if given.tiny else SD15
    setting = Setting(shape, device, given.images, given.steps, given.guidance, given.micro_batch)
    command = command_of("sd15", arguments)
    measure(setting, given.repeats, given.warm_ups, command).publish(given.out)
    return 0


if __name__ == "__main__":
    run_command(main)
