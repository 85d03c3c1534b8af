"""What Stable Diffusion 1.5 and SDXL cost, counted on their shapes without weights or a GPU.

python -m benchmarks.scale_shapes          # counts again, and prints
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sd15_shape import SD15
from common.config.training import LoraPolicy
from common.model.families.base import PROJECTIONS
from common.terminal import run_command, say

TOKENS = 77
SDXL_UNET: Mapping[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "norm_num_groups": 32,
}
SDXL_ADDED = {"text_embeds": (1, 1280), "time_ids": (1, 6)}
"""Shapes of what SDXL's UNet is told besides the prompt's tokens."""


@dataclass(frozen=True)
class ShapeCost:
    """latent, pixels: sides. parameters: of the UNet; lora_parameters: of an adapter of rank 16.

    FLOP of one image: forward: a UNet pass; lora_step, full_step: a pass with its backward pass, of the
    adapter or of all weights; decode: of the autoencoder. A multiplication and an addition are 2 FLOP.
    """

    latent: int
    pixels: int
    parameters: int
    lora_parameters: int
    forward: float
    lora_step: float
    full_step: float
    decode: float


def count(unet_shape: Mapping[str, Any], added: Mapping[str, tuple[int, ...]]) -> ShapeCost:
    """Count a UNet with the autoencoder of Stable Diffusion. added: shapes of added_cond_kwargs."""
    side = int(unet_shape["sample_size"])
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**unet_shape)
        vae: Any = AutoencoderKL(**{**SD15.vae, "sample_size": 8 * side})
        latents, time = torch.empty(1, 4, side, side), torch.empty(1)
        text = torch.empty(1, TOKENS, unet_shape["cross_attention_dim"])
        told = {name: torch.empty(shape) for name, shape in added.items()}

        def predict() -> Tensor:
            output: Tensor = unet(latents, time, text, added_cond_kwargs=told, return_dict=False)[0]
            return output

        with torch.no_grad():
            forward = _flop(predict)
            decode = _flop(lambda: vae.decode(latents))
        parameters = sum(value.numel() for value in unet.parameters())
        full_step = _flop(lambda: predict().sum().backward())
        adapter = _adapt(unet)
        lora_step = _flop(lambda: predict().sum().backward())
    return ShapeCost(side, 8 * side, parameters, adapter, forward, lora_step, full_step, decode)


def _adapt(unet: Any) -> int:
    """Freeze the UNet but for a new adapter; the adapter's parameters."""
    settings = LoraPolicy()
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            init_lora_weights="gaussian",
            target_modules=list(PROJECTIONS),
        )
    )
    own = [value for name, value in unet.named_parameters() if "lora_" in name]
    for value in own:
        value.requires_grad_(True)
    return sum(value.numel() for value in own)


def _flop(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


SD15_COST = ShapeCost(
    latent=64,
    pixels=512,
    parameters=859_520_964,
    lora_parameters=3_188_736,
    forward=803_273_441_280.0,
    lora_step=1_724_528_283_648.0,
    full_step=2_406_773_063_680.0,
    decode=2_514_518_933_504.0,
)
SDXL_COST = ShapeCost(
    latent=128,
    pixels=1024,
    parameters=2_567_463_684,
    lora_parameters=23_224_320,
    forward=6_761_236_398_080.0,
    lora_step=14_187_923_292_160.0,
    full_step=20_230_842_449_920.0,
    decode=10_470_392_594_432.0,
)

SECONDS_ON_A100 = 11.8
"""An actor's for a group of 8 of Stable Diffusion 1.5, 50 steps, guidance, reference: counted FLOP at 35 %
of 312 TFLOP/s."""


def sampling_flop(cost: ShapeCost, images: int, steps: int, learned: int, passes: int) -> float:
    """An actor's for a group: policy on all steps, reference on the learned ones, the autoencoder.

    passes: of the UNet a step, 2 with guidance.
    """
    return images * (passes * (steps + learned) * cost.forward + cost.decode)


def learning_flop(cost: ShapeCost, images: int, learned: int, passes: int, full: bool) -> float:
    """A rank's for a group and update, without recomputed activations."""
    return images * passes * learned * (cost.full_step if full else cost.lora_step)


def main(arguments: Sequence[str]) -> int:
    """Count again, and show it. Returns 0."""
    argparse.ArgumentParser(prog="python -m benchmarks.scale_shapes", description=__doc__).parse_args(
        arguments
    )
    for name, shape, added in (("SD 1.5", SD15.unet, {}), ("SDXL", SDXL_UNET, SDXL_ADDED)):
        cost = count(shape, added)
        lora, full = (learning_flop(cost, 8, 49, 2, full) / 1e12 for full in (False, True))
        sampling = sampling_flop(cost, 8, 50, 49, 2) / 1e12
        say(
            f"{name}: {cost}\n  TFLOP of a group of 8, 50 steps: sampling {sampling:,.0f}, "
            f"learning LoRA {lora:,.0f}, full {full:,.0f}"
        )
    return 0


if __name__ == "__main__":
    run_command(main)
