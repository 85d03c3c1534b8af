"""A tiny CLIP folder with random weights, and made-up groups."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel of two layers a tower, random weights, a letter-level tokenizer, 32x32 preprocessing."""
    # Here, because most tests of this folder need none of it, and it takes seconds to import.
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = string.ascii_lowercase + string.digits + ".,"
    words = [letter + end for letter in letters for end in ("", "</w>")] + [START, END]
    CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[]).save_pretrained(
        folder
    )
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": 40},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_images() -> Callable[[int, int], NDArray[np.uint8]]:
    """make_images(seed, B) -> uint8 (B, 48, 48, 3), each with its own mean colour."""

    def make(seed: int, count: int) -> NDArray[np.uint8]:
        generator = np.random.default_rng(seed)
        tint = generator.integers(0, 200, (count, 1, 1, 3))
        return (tint + generator.integers(0, 56, (count, 48, 48, 3))).astype(np.uint8)

    return make


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """hub_cache("owner/name") -> the empty snapshot folder of its main branch in a hub's cache, offline."""

    def make(repository: str) -> Path:
        cached = tmp_path / f"models--{repository.replace('/', '--')}"
        snapshot = cached / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(snapshot.name)
        return snapshot

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return make
