"""The shipped models' files for transformers 4, whose CLIP tokenizer is written in Python."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import CLIPImageProcessorPil, CLIPTokenizer

from models.older_files import TEXT_PREFIX, write_picture_settings, write_vocabulary
from models.train_tiny.paths import GOLD_FOLDER, PROXY_FOLDER, SD_FOLDER

TOKENIZERS = {"base": SD_FOLDER / "tokenizer", "proxy": PROXY_FOLDER, "gold": GOLD_FOLDER}
PROMPTS = ("a big heart in the center of a black background", "Two  red-ish strawberries, 12 k!", "zebra", "")
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")


def _slow_ids(folder: Path, prompt: str) -> list[int]:
    """As transformers 4.57's CLIPTokenizer reads and merges, for prompts in ASCII."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").strip().split("\n")[1:]
    ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
    ids = [vocabulary["<|startoftext|>"]]
    for word in WORDS.findall(prompt.lower()):
        parts = [*word[:-1], word[-1] + "</w>"]
        while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
            best = min(pairs, key=ranks.__getitem__)
            merged: list[str] = []
            while parts:
                merged.append(parts.pop(0))
                if parts and (merged[-1], parts[0]) == best:
                    merged[-1] += parts.pop(0)
            parts = merged
        ids += [vocabulary.get(part, vocabulary["<|endoftext|>"]) for part in parts]
    return [*ids, vocabulary["<|endoftext|>"]]


@pytest.mark.parametrize("folder", TOKENIZERS.values(), ids=TOKENIZERS)
def test_both_kinds_of_tokenizer_files_give_the_same_ids(folder: Path, tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        assert _slow_ids(folder, prompt) == tokenizer(prompt).input_ids
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    write_vocabulary(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("folder", [PROXY_FOLDER, GOLD_FOLDER])
def test_both_kinds_of_picture_settings_say_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_bytes((folder / "processor_config.json").read_bytes())
    write_picture_settings(tmp_path)
    written = (tmp_path / "preprocessor_config.json").read_bytes()
    assert written == (folder / "preprocessor_config.json").read_bytes()
    (tmp_path / "processor_config.json").unlink()
    either = [CLIPImageProcessorPil.from_pretrained(place) for place in (tmp_path, folder)]
    assert either[0].to_dict() == either[1].to_dict()


def test_the_text_encoders_weights_have_the_names_that_both_versions_read() -> None:
    with safe_open(SD_FOLDER / "text_encoder" / "model.safetensors", framework="pt") as file:
        assert {name.startswith(TEXT_PREFIX) for name in file.keys()} == {True}  # noqa: SIM118
