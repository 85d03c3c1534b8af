"""What a group costs with each family around a transformer, counted on published shapes without weights.

python -m benchmarks.family_costs          # the table of docs/models.md, on two cores in about a minute
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from common.config.load import load_config
from common.config.schema import Config
from common.config.training import LoraPolicy
from common.model.families.flow import FlowFamily, Layout
from common.model.families.flux import FluxFamily
from common.model.families.flux2_klein import Flux2KleinFamily
from common.model.families.pixart_sigma import PixArtSigmaFamily
from common.model.families.qwen_image import QwenImageFamily
from common.model.families.sana import SanaFamily
from common.model.families.stable_diffusion_3 import StableDiffusion3Family
from common.model.families.z_image import ZImageFamily
from common.model.scheduler_options import fill_scheduler_config
from common.terminal import run_command, say

CONFIGS = Path(__file__).parent.parent / "configs"
META = torch.device("meta")
T5_XXL = T5Config(
    d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)
CLIP_L = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
CLIP_G = CLIPTextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
)
GEMMA = Gemma2Config(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
)
QWEN3 = Qwen3Config(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
QWEN_VL = Qwen2_5_VLConfig(
    text_config={
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    vision_config={"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
)


@dataclass(frozen=True)
class Shape:
    """A published model.

    text: makes the text encoder. side: pixels of a latent's side, or a patch's where latents are packed.
    channels: of it. scheduler: class and options. transformer: options other than the class's defaults.
    """

    family: Any
    text: Callable[[], Any]
    side: int
    channels: int
    packed: bool
    scheduler: tuple[str, Mapping[str, Any]]
    transformer: Mapping[str, Any] = field(default_factory=dict)

    def loaded(self, config: Config) -> Any:
        """The family with its transformer alone, on the meta device, for a configuration's sizes."""
        size = (config.sampling.height, config.sampling.width)
        rows, columns = (pixels // self.side for pixels in size)
        latent = (rows * columns, self.channels) if self.packed else (self.channels, rows, columns)
        layout = Layout(latent, (rows, columns))
        is_flow = issubclass(self.family, FlowFamily)
        with META:
            network = self.family.PARTS.network(**self.transformer)
        return self.family(
            network=network,
            text=None,
            images=None,
            scheduler=(self.scheduler[0], fill_scheduler_config(*self.scheduler)),
            device=META,
            latent_shape=latent,
            **({"layout": layout} if is_flow else {}),
        )


FLOW = "FlowMatchEulerDiscreteScheduler"
SOLVER = "DPMSolverMultistepScheduler"
DYNAMIC = {"use_dynamic_shifting": True}
SHAPES = {
    "sd35": Shape(
        StableDiffusion3Family,
        lambda: nn.ModuleList(
            [CLIPTextModelWithProjection(CLIP_L), CLIPTextModelWithProjection(CLIP_G), T5EncoderModel(T5_XXL)]
        ),
        8,
        16,
        False,
        (FLOW, {"shift": 3.0}),
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "flux": Shape(
        FluxFamily,
        lambda: nn.ModuleList([CLIPTextModel(CLIP_L), T5EncoderModel(T5_XXL)]),
        16,
        64,
        True,
        (FLOW, {**DYNAMIC, "shift": 3.0}),
        {"guidance_embeds": True},
    ),
    "pixart_sigma": Shape(
        PixArtSigmaFamily,
        lambda: T5EncoderModel(T5_XXL),
        8,
        4,
        False,
        (SOLVER, {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
        {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
    ),
    "sana": Shape(
        SanaFamily,
        lambda: Gemma2Model(GEMMA),
        32,
        32,
        False,
        (SOLVER, {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}),
    ),
    "qwen_image": Shape(
        QwenImageFamily,
        lambda: Qwen2_5_VLForConditionalGeneration(QWEN_VL),
        16,
        64,
        True,
        (FLOW, {**DYNAMIC, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}),
    ),
    "z_image": Shape(ZImageFamily, lambda: Qwen3Model(QWEN3), 8, 16, False, (FLOW, {"shift": 6.0})),
    "flux2_klein": Shape(
        Flux2KleinFamily,
        lambda: Qwen3ForCausalLM(QWEN3),
        16,
        128,
        True,
        (FLOW, DYNAMIC),
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
}


@dataclass(frozen=True)
class Cost:
    """parameters: of transformer, text encoder and adapter. FLOP of one image: forward, a pass; step, a pass
    with its backward pass of the adapter. latent, condition: bytes of one latent, and of one row of what the
    network is conditioned on. A multiplication and an addition are 2 FLOP."""

    parameters: int
    text_parameters: int
    lora_parameters: int
    forward: float
    step: float
    latent: int
    condition: int


def count(family: Any, text: Callable[[], Any], config: Config) -> Cost:
    """Count with the sizes of a configuration. family: see Shape.loaded."""
    policy, tokens, network = config.policy, config.model.prompt_tokens, family.network
    assert isinstance(policy, LoraPolicy)
    with META:
        encoder = text()
    condition = {
        # Numbers of tokens are read on the host.
        name: value[:, :tokens] if value.dim() > 1 else torch.tensor([tokens])
        for name, value in family.example().items()
    }
    if not tokens:
        condition = family.example()
    latents, times = torch.empty(1, *family.latent_shape, device=META), torch.empty(1, device=META)

    def predict() -> Tensor:
        # At scale 1 it is one pass, whatever the guidance.
        forward = partial(family.forward, network)
        output: Tensor = family.guidance(1.0).predict(forward, latents, times, condition)
        return output

    parameters = sum(value.numel() for value in network.parameters())
    with torch.no_grad():
        forward = _flop(predict)
    return Cost(
        parameters=parameters,
        text_parameters=sum(value.numel() for value in encoder.parameters()),
        lora_parameters=_adapt(network, policy, family.targets(network)),
        forward=forward,
        step=_flop(lambda: predict().sum().backward()),
        latent=4 * latents.numel(),
        condition=sum(value.numel() * value.element_size() for value in condition.values()),
    )


def _adapt(network: Any, policy: LoraPolicy, targets: Sequence[str]) -> int:
    """Freeze the network but for a new adapter; the adapter's parameters."""
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=policy.rank, lora_alpha=policy.alpha, target_modules=list(targets)))
    own = [value for name, value in network.named_parameters() if "lora_" in name]
    for value in own:
        value.requires_grad_(True)
    return sum(value.numel() for value in own)


def _flop(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def row(name: str, config: Config, cost: Cost, learned: int, rows: int) -> str:
    """A row of the table. learned: steps of an image that enter the objective. rows: of a condition."""
    sampling = config.sampling
    passes = rows * sampling.images_per_prompt
    group = f"{sampling.images_per_prompt} x {sampling.height} px, {learned} of {sampling.steps} steps"
    moved = sampling.images_per_prompt * (sampling.steps + 1) * cost.latent + rows * cost.condition
    columns = (
        name,
        group,
        f"{cost.parameters / 1e9:.2f} + {cost.text_parameters / 1e9:.2f}",
        f"{2 * (cost.parameters + cost.text_parameters) / 1e9:.1f}",
        f"{cost.lora_parameters / 1e6:.1f}",
        f"{cost.forward / 1e12:.2f}",
        f"{passes * (sampling.steps + learned) * cost.forward / 1e12:,.0f}",
        f"{passes * learned * cost.step / 1e12:,.0f}",
        f"{moved / 1e6:.1f}",
    )
    return f"| {' | '.join(columns)} |"


COLUMNS = (
    "family",
    "group",
    "billions of weights, of text",
    "GB in bfloat16",
    "millions in the adapter",
    "TFLOP of a pass",
    "of sampling",
    "of an update",
    "MB of the group",
)


def main(arguments: Sequence[str]) -> int:
    """Count, and show the table. Returns 0."""
    argparse.ArgumentParser(prog="python -m benchmarks.family_costs", description=__doc__).parse_args(
        arguments
    )
    say(f"| {' | '.join(COLUMNS)} |")
    say("|" + " --- |" * len(COLUMNS))
    for name, shape in SHAPES.items():
        config = load_config(CONFIGS / f"{name}_lora.yaml", [])
        family = shape.loaded(config)
        cost = count(family, shape.text, config)
        steps = family.steps(config.sampling).during(config.run.seed, 0)
        rows = family.guidance(config.sampling.guidance_scale).rows
        say(row(name, config, cost, len(steps.stochastic_steps), rows))
    return 0


if __name__ == "__main__":
    run_command(main)
