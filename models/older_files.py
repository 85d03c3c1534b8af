"""What transformers 4 reads of a model's folder, beside what transformers 5 writes."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

TEXT_PREFIX = "text_model."


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt, of which its CLIP tokenizer is made, from tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False, indent=0)
    (folder / "vocab.json").write_text(f"{vocabulary}\n", encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def write_picture_settings(folder: Path) -> None:
    """Write preprocessor_config.json from processor_config.json."""
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    (folder / "preprocessor_config.json").write_text(f"{json.dumps(settings, indent=2)}\n", encoding="utf-8")


def prefix_text_tensors(file: Path) -> None:
    """Begin the names of a text encoder's weights with text_model: both versions read them so."""
    tensors = safetensors.torch.load_file(file)
    named = {TEXT_PREFIX + name.removeprefix(TEXT_PREFIX): value for name, value in tensors.items()}
    safetensors.torch.save_file(named, file, {"format": "pt"})
