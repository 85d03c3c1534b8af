"""BLIP's image tower and its text tower that looks at the image, from ImageReward's tensors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from common.errors import RewardError
from reward_service.scorers.linear_head import LinearHead, linear_head
from reward_service.scorers.model_files import Tensors, build_model

_HEAD_WIDTH = 64
"""Numbers of one attention head in BLIP's image tower, of every published size."""
_VISION_EPSILON = 1e-6
"""Of the image tower's layer norms, in models/vit.py of github.com/salesforce/BLIP."""
_TEXT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
)
_WHOLE = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@dataclass(frozen=True)
class BlipReward:
    """The towers and the head of ImageReward, in float32. image_size: side of the squares it takes."""

    vision: BlipVisionModel
    text: BlipTextModel
    head: LinearHead
    image_size: int

    def __call__(self, pixels: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """pixels float32 (M, 3, S, S); tokens and mask int64 (M, L) -> the head's numbers, float32 (M,).

        The head reads the text tower's first token after it has looked at all patches of the image.
        """
        patches = self.vision(pixel_values=pixels.to(self.vision.device)).last_hidden_state
        seen = torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device)
        output = self.text(
            input_ids=tokens.to(patches.device),
            attention_mask=mask.to(patches.device),
            encoder_hidden_states=patches,
            encoder_attention_mask=seen,
            is_decoder=False,
        )
        return self.head(output.last_hidden_state[:, 0])


def build_blip(tensors: Tensors, settings: dict[str, Any], where: Path) -> BlipReward:
    """ImageReward's model from its tensors (blip.visual_encoder.*, blip.text_encoder.*, mlp.*).

    settings: the text tower's, med_config.json. Other tensors (BLIP's contrastive projections) are left out.
    Raises RewardError where a tensor or a setting is missing or does not fit.
    """
    named = {name.removeprefix("blip."): tensor for name, tensor in tensors.items()}
    vision, text, head = (
        _part(named, start, where) for start in ("visual_encoder.", "text_encoder.", "mlp.")
    )
    config: Any = _vision_config(vision, where)
    text_config = _text_config(settings, config.hidden_size, where)
    return BlipReward(
        vision=build_model(BlipVisionModel, config, _vision_tensors(vision), where),
        text=build_model(_TextTower, text_config, text, where),
        head=linear_head(head, text_config.hidden_size, f"{where} (mlp)"),
        image_size=int(config.image_size),
    )


class _TextTower(BlipTextModel):
    """BLIP's text tower without the pooling layer, which ImageReward does not have."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config, add_pooling_layer=False)


def _part(tensors: Tensors, start: str, where: Path) -> dict[str, torch.Tensor]:
    part = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    if not part:
        raise RewardError(f"{where} is no ImageReward checkpoint: it has no tensors {start}*.")
    return part


def _vision_tensors(tensors: Tensors) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if name in _WHOLE:
            renamed[_WHOLE[name]] = tensor
        elif block and block[2] in _IN_BLOCK:
            renamed[f"encoder.layers.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"] = tensor
    return renamed


def _vision_config(tensors: Tensors, where: Path) -> BlipVisionConfig:
    needed = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise RewardError(f"{where} lacks {missing} of BLIP's image tower.")
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    layers = {block[1] for block in map(_BLOCK.fullmatch, tensors) if block}
    if width % _HEAD_WIDTH or side * side + 1 != tensors["pos_embed"].shape[1]:
        raise RewardError(
            f"{where}: an image tower of width {width} with {tensors['pos_embed'].shape[1]} positions is "
            f"none of BLIP's, whose width is a multiple of {_HEAD_WIDTH} and whose images are square."
        )
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=width // _HEAD_WIDTH,
        image_size=side * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=_VISION_EPSILON,
    )


def _text_config(settings: dict[str, Any], vision_width: int, where: Path) -> BlipTextConfig:
    missing = [name for name in _TEXT_SETTINGS if name not in settings]
    if missing:
        raise RewardError(f"med_config.json beside {where} lacks {missing} of BLIP's text tower.")
    return BlipTextConfig(
        **{name: settings[name] for name in _TEXT_SETTINGS},
        encoder_hidden_size=vision_width,
        is_decoder=True,  # transformers builds the layers that look at the image only with this
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
    )
