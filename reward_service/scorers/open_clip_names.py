"""From an open_clip checkpoint's tensors to those of a transformers CLIPModel."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from common.errors import RewardError
from reward_service.scorers.model_files import Tensors

_WHOLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}
"""open_clip multiplies by these from the right; transformers holds them as linear layers."""
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_FUSED = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_NOT_WEIGHTS = ("attn_mask",)
"""A buffer that old versions of open_clip saved: the causal mask, which transformers makes itself."""


def to_transformers(tensors: Tensors, where: Path) -> dict[str, torch.Tensor]:
    """The tensors of an open_clip CLIP (ViT with class token, causal text tower) by transformers' names.

    The fused in_proj of every attention is cut into query, key and value; the two projections are transposed.
    Raises RewardError naming the tensors that belong to no such model.
    """
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        fused, block = _FUSED.fullmatch(name), _BLOCK.fullmatch(name)
        if name in _WHOLE:
            renamed[_WHOLE[name]] = tensor
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif fused:
            layer = _layer(fused[1], fused[2])
            for part, piece in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{part}.{fused[3]}"] = piece.contiguous()
        elif block and block[3] in _IN_BLOCK:
            renamed[f"{_layer(block[1], block[2])}.{_IN_BLOCK[block[3]]}.{block[4]}"] = tensor
        elif name not in _NOT_WEIGHTS:
            unknown.append(name)
    if unknown:
        raise RewardError(
            f"{where} is no open_clip CLIP checkpoint: it has {len(unknown)} tensors of other names, "
            f"e.g. {sorted(unknown)[:3]}."
        )
    return renamed


def _layer(visual: str | None, number: str) -> str:
    tower = "vision_model" if visual else "text_model"
    return f"{tower}.encoder.layers.{number}"
