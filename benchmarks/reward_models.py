"""The scorers that throughput is measured with: the shipped one, and one of the size that users have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from benchmarks.reward_cluster import ROOT

MODEL = ROOT / "models" / "tiny-clip-proxy"
_SEED = 0
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_WIDTH = 512
"""The shape of openai/clip-vit-base-patch32, as its config.json has it."""


@dataclass(frozen=True)
class SizedModel:
    """groups: in one turn of a side of the comparison; images: of a group; side: of a picture, in pixels.

    folder: makes the model ready in a folder for temporary files, and returns where it is.
    """

    groups: int
    images: int
    side: int
    folder: Callable[[Path], Path]
    about: str


def _shipped(_: Path) -> Path:
    return MODEL


def _make_b32(folder: Path) -> Path:
    """Random weights of CLIP ViT-B/32, with the tokenizer of the shipped model."""
    there = folder / "clip-b32"
    there.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, there / name)
    tiny = json.loads((MODEL / "config.json").read_text())["text_config"]
    special = {name: tiny[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(_SEED)
    config = CLIPConfig(text_config={**_TEXT, **special}, vision_config=_VISION, projection_dim=_WIDTH)
    CLIPModel(config).save_pretrained(there)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (there / "preprocessor_config.json").write_text(json.dumps(processor))
    return there


SIZED_MODELS: Mapping[str, SizedModel] = {
    "b32": SizedModel(8, 8, 224, _make_b32, "CLIP ViT-B/32 (151 million weights, random)"),
    "tiny": SizedModel(64, 16, 64, _shipped, "models/tiny-clip-proxy (1.1 million weights)"),
}
