"""Language models as text encoders: what is missing of them is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from common.config.training import ModelSection, SamplingSection
from common.errors import ModelError
from common.model.families import check_model, load_family
from common.model.parts import Source
from tests.tiny_transformers import make_tiny_pixart, make_tiny_z_image

SAMPLING = SamplingSection(steps=4, height=32, width=32)


def _tokenizer_setting(**settings: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer" / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    return change


def _no_template(folder: Path) -> None:
    (folder / "tokenizer" / "chat_template.jinja").unlink()


def _small_vocabulary(folder: Path) -> None:
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 7}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_tokenizer_setting(pad_token=None), "pad_token"),
        (_no_template, "chat_template"),
        (_small_vocabulary, "vocab_size is 7"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    folder = make_tiny_z_image(tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match=reason):
        check_model(ModelSection(path=str(folder)), SAMPLING)


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_z_image(tmp_path / "model")
    path = folder / "text_encoder" / "model.safetensors"
    held = safetensors.torch.load_file(path)
    gone = next(name for name in held if name.endswith("mlp.up_proj.weight"))
    del held[gone]
    safetensors.torch.save_file(held, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"text_encoder.*lack.*mlp\.up_proj"):
        load_family(Source(ModelSection(path=str(folder)), torch.device("cpu")), SAMPLING)


@pytest.mark.parametrize("tokens", [0, 40])
def test_prompts_are_as_long_as_asked_for(tmp_path: Path, tokens: int) -> None:
    model = ModelSection(path=str(make_tiny_z_image(tmp_path / "model")), prompt_tokens=tokens)
    condition = load_family(Source(model, torch.device("cpu")), SAMPLING).embed(["a cat", "a " * 100])
    assert condition["cap_feats"].shape[:2] == (2, tokens or 512)
    assert condition["cap_tokens"].max() <= (tokens or 512)


def test_a_sentencepiece_model_alone_says_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_pixart(tmp_path / "model")
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
    monkeypatch.setattr("common.model.parts.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install sentencepiece"):
        check_model(ModelSection(path=str(folder)), SamplingSection())
