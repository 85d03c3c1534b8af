"""Pipelines whose prompts T5 or a language model reads, in miniature: real classes, random weights."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests.tiny_flow import T5_WIDTH, t5_encoder, t5_tokenizer

LANGUAGE_WIDTH = 16


def _randomized(network: Any) -> Any:
    """Zeros, which such networks are made with, become small numbers, so that all has a gradient."""
    with torch.no_grad():
        for value in network.parameters():
            if not bool(value.any()):
                value.normal_(std=0.1)
    return network


def _vae() -> AutoencoderKL:
    """Eight pixels a latent's side, with a scale alone."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    )


def make_tiny_pixart(folder: Path, seed: int = 0) -> Path:
    """Write a PixArtSigmaPipeline folder: 64 x 64 pixels, 4 x 8 x 8 latents. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = t5_tokenizer()
        transformer = PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            cross_attention_dim=16,
            caption_channels=T5_WIDTH,
        )
        pipeline: Any = PixArtSigmaPipeline(
            transformer=_randomized(transformer),
            scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
            vae=_vae(),
            text_encoder=t5_encoder(tokenizer),
            tokenizer=tokenizer,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _flow_vae(channels: int) -> AutoencoderKL:
    """Two pixels a latent's side, with a scale and a shift."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _gemma_tokenizer() -> GemmaTokenizer:
    """One token a letter."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", "\n")
    letters = (*special, *string.ascii_letters, *string.digits, *string.punctuation)
    return GemmaTokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """One token a byte, with a chat template like Qwen's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = (*letters, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = Qwen2Tokenizer(vocab={letter: number for number, letter in enumerate(names)}, merges=[])
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    return tokenizer


def _qwen3_config(tokenizer: Qwen2Tokenizer, layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=LANGUAGE_WIDTH,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )


def make_tiny_sana(folder: Path, seed: int = 0) -> Path:
    """Write a SanaPipeline folder: 32 x 32 pixels, 4 x 16 x 16 latents. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _gemma_tokenizer()
        transformer = SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=LANGUAGE_WIDTH,
            sample_size=16,
        )
        vae = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            scaling_factor=0.41407,
        )
        config = Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=LANGUAGE_WIDTH,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
        pipeline: Any = SanaPipeline(
            transformer=_randomized(transformer),
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            vae=vae,
            text_encoder=Gemma2Model(config),
            tokenizer=tokenizer,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_qwen_image(folder: Path, seed: int = 0) -> Path:
    """Write a QwenImagePipeline folder: 4 pixels a latent's side, 16 channels a patch. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _qwen_tokenizer()
        transformer = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=LANGUAGE_WIDTH,
            axes_dims_rope=(8, 4, 4),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.7, 2.0, 1.0],
        )
        config = Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": LANGUAGE_WIDTH,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": LANGUAGE_WIDTH,
            },
        )
        pipeline: Any = QwenImagePipeline(
            transformer=_randomized(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
            vae=vae,
            text_encoder=Qwen2_5_VLForConditionalGeneration(config),
            tokenizer=tokenizer,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_z_image(folder: Path, seed: int = 0) -> Path:
    """Write a ZImagePipeline folder: two pixels a latent's side, 4 channels. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _qwen_tokenizer()
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=LANGUAGE_WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 32, 32],
        )
        pipeline: Any = ZImagePipeline(
            transformer=_randomized(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
            vae=_flow_vae(4),
            text_encoder=Qwen3Model(_qwen3_config(tokenizer, 3)),
            tokenizer=tokenizer,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_flux2_klein(folder: Path, distilled: bool = False, seed: int = 0) -> Path:
    """Write a Flux2KleinPipeline folder: 2 pixels a latent's side, 16 channels a patch. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _qwen_tokenizer()
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * LANGUAGE_WIDTH,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        vae = AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
        pipeline: Any = Flux2KleinPipeline(
            transformer=_randomized(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae,
            text_encoder=Qwen3ForCausalLM(_qwen3_config(tokenizer, 27)),
            tokenizer=tokenizer,
            is_distilled=distilled,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
