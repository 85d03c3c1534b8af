"""Architectures and settings of the two rewards: CLIP models in miniature, unlike each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from models.older_files import write_picture_settings
from models.tokenizer import MAX_LENGTH, save_tokenizer
from models.train_tiny.paths import GOLD_NAME, PROXY_NAME, let_everyone_read

MEAN, STD = 0.5, 0.25
POSITION_SCALE = 0.5


@dataclass(frozen=True)
class RewardPlan:
    """What sets one reward apart: architecture, seed, augmentation (pixels in 0..1) and training.

    ``plain_share`` of the ``steps`` are plain batches; the learning rate falls so that it would come to its
    end after ``rate_stretch`` times the steps.
    """

    folder: str
    seed: int
    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    text_width: int
    text_layers: int
    noise: float
    blur: float
    shift: int
    contrast: float
    learning_rate: float
    steps: int
    plain_share: float
    rate_stretch: float


PLANS: dict[str, RewardPlan] = {
    "proxy": RewardPlan(
        PROXY_NAME,
        21,
        64,
        16,
        128,
        4,
        4,
        96,
        3,
        noise=0.06,
        blur=1.0,
        shift=2,
        contrast=0.1,
        learning_rate=1.5e-3,
        steps=5000,
        plain_share=0.6,
        rate_stretch=1.0,
    ),
    "gold": RewardPlan(
        GOLD_NAME,
        47,
        56,
        14,
        160,
        4,
        5,
        128,
        2,
        noise=0.1,
        blur=0.7,
        shift=3,
        contrast=0.2,
        learning_rate=1.2e-3,
        steps=3000,
        plain_share=0.72,
        rate_stretch=1.2,
    ),
}


def make_clip(plan: RewardPlan, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A fresh CLIP model of the plan's size."""
    vision = {
        "hidden_size": plan.width,
        "intermediate_size": 3 * plan.width,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "image_size": plan.image_size,
        "patch_size": plan.patch_size,
        "projection_dim": 128,
        "hidden_act": "gelu",
        "initializer_factor": 1.0,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": plan.text_width,
        "intermediate_size": 3 * plan.text_width,
        "num_hidden_layers": plan.text_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "projection_dim": 128,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=128))
    side = plan.image_size // plan.patch_size
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = POSITION_SCALE * grid_waves(
            side, plan.width
        )
    return model


def grid_waves(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of the places in a square grid: (side * side, width), row by row.

    Position embeddings that start so already say which patches are neighbours and which share a row; with
    random ones that must be learnt first, which takes long.
    """
    count = width // 4
    frequencies = torch.pi / side * (side / 2.0) ** (torch.arange(count) / (count - 1))
    angles = (torch.arange(side) + 0.5)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, 4 * count)


def make_processor(plan: RewardPlan, folder: Path) -> CLIPProcessor:
    """Write the plan's processor (tokenizer and picture settings) to ``folder`` and return it."""
    tokenizer = save_tokenizer(plan.seed, folder)
    pictures = CLIPImageProcessor(
        size={"shortest_edge": plan.image_size},
        crop_size={"height": plan.image_size, "width": plan.image_size},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    processor = CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)
    processor.save_pretrained(folder)
    write_picture_settings(folder)
    return processor


def save_clip(model: CLIPModel, folder: Path) -> None:
    """Write the model's float16 weights and configuration."""
    half = CLIPModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    let_everyone_read(folder)
