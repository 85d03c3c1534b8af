"""Whole flow-matching pipelines in miniature with random weights: the real classes, milliseconds a step."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from tests.tiny_pipeline import WIDTH, clip_config, clip_tokenizer

T5_WIDTH = 40


def t5_tokenizer() -> T5TokenizerFast:
    """One token a letter."""
    letters = [(letter, -3.0) for letter in string.ascii_letters + string.digits + ".,-"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *letters]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def t5_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Two layers of T5_WIDTH."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def flow_vae(channels: int) -> AutoencoderKL:
    """Four pixels a latent's side, with a scale and a shift."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def make_tiny_sd3(folder: Path, with_t5: bool = True, seed: int = 0) -> Path:
    """Write a StableDiffusion3Pipeline folder: 32 x 32 pixels, 4 x 8 x 8 latents. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, longer = clip_tokenizer(), t5_tokenizer() if with_t5 else None
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            out_channels=4,
            pos_embed_max_size=12,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        pipeline: Any = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=flow_vae(4),
            text_encoder=CLIPTextModelWithProjection(clip_config(tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer)),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5_encoder(longer) if longer else None,
            tokenizer_3=longer,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_flux(folder: Path, guided: bool = True, seed: int = 0) -> Path:
    """Write a FluxPipeline folder, like dev (guided) or like schnell; 8 pixels a token. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, longer = clip_tokenizer(), t5_tokenizer()
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guided,
            axes_dims_rope=(2, 2, 4),
        )
        shift = {"shift": 3.0, "use_dynamic_shifting": True} if guided else {"shift": 1.0}
        pipeline: Any = FluxPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(**shift),
            vae=flow_vae(4),
            text_encoder=CLIPTextModel(clip_config(tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=t5_encoder(longer),
            tokenizer_2=longer,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
