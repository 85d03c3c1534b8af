"""Stable Diffusion 1.5's shape with random weights, written out: nothing is downloaded. And a miniature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common.model.families.stable_diffusion import StableDiffusionFamily, one_encoder
from common.model.parts import VaeDecoder
from common.model.text import PaddedText

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_VOCABULARY = 49408


@dataclass(frozen=True)
class Shape:
    """Keyword arguments of the UNet, the autoencoder and the text encoder's configuration."""

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]


SD15 = Shape(
    name="Stable Diffusion 1.5",
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    },
    vae={
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 512,
    },
    # The text encoder of CLIP ViT-L/14.
    text={
        "vocab_size": CLIP_VOCABULARY,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
)

TINY = Shape(
    name="a miniature of it",
    unet={
        **SD15.unet,
        "sample_size": 8,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    vae={
        **SD15.vae,
        "block_out_channels": (4, 4, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
    },
    text={
        **SD15.text,
        "vocab_size": 1024,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
    },
)


def random_family(shape: Shape, device: torch.device, seed: int = 0) -> StableDiffusionFamily:
    """A loaded family of that shape with random weights in float32, frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _tokenizer(shape.text["max_position_embeddings"])
        pipeline: Any = StableDiffusionPipeline(
            vae=AutoencoderKL(**shape.vae),
            text_encoder=CLIPTextModel(CLIPTextConfig(**shape.text)),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(**shape.unet),
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).eval().to(device)
    size = shape.unet["sample_size"]
    return StableDiffusionFamily(
        network=pipeline.unet,
        text=one_encoder(
            PaddedText(tokenizer, lambda: pipeline.text_encoder, tokenizer.model_max_length), device, "keep"
        ),
        images=VaeDecoder(pipeline.vae, chunk=8),
        scheduler=("DDIMScheduler", dict(pipeline.scheduler.config)),
        latent_shape=(shape.unet["in_channels"], size, size),
        size=(8 * size, 8 * size),
        device=device,
    )


def _tokenizer(tokens: int) -> CLIPTokenizer:
    """A token a byte, padded to CLIP's length: what a token means does not change the time it takes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [letter + end for letter in alphabet for end in ("", "</w>")]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate([*words, START, END])},
        merges=[],
        model_max_length=tokens,
        pad_token=END,
        unk_token=END,
        bos_token=START,
        eos_token=END,
    )


def _scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
