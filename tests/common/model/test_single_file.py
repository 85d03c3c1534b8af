"""Pipelines in one file, as others share them: the same numbers as the folder that they were made of."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from pydantic import ValidationError
from transformers import CLIPTextModel

from common.config.schema import Config
from common.config.training import ModelSection, SamplingSection
from common.errors import ModelError
from common.model.digests import digest_parts
from common.model.families import check_model
from common.model.loading import digest_base, digest_encoders_and_vae, load_policy
from common.model.single_file import known_config
from tests.tiny_config import make_config

SAMPLING = SamplingSection(steps=4, stochastic_steps="all_but_last")
Change = Callable[[dict[str, Any]], dict[str, Any]]


def _ldm_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """A UNet's tensor names in diffusers -> in a single file: diffusers' own conversion, asked of every name
    that a single file could have."""
    inner = {name.split("attentions.0.")[-1] for name in unet.state_dict() if "attentions.0" in name}
    layers = ["time_embed.0", "time_embed.2", "out.0", "out.2", "skip_connection", "op", "conv"]
    layers += [f"{part}.{at}" for part in ("in_layers", "emb_layers", "out_layers") for at in range(4)]
    ends = inner | {f"{layer}.{kind}" for layer in ("", *layers) for kind in ("weight", "bias")}
    blocks = [
        f"{side}.{at}.{part}"
        for side in ("input_blocks", "output_blocks")
        for at in range(9)
        for part in range(3)
    ]
    places = ["", *blocks, *(f"middle_block.{at}" for at in range(3))]
    names = {
        f"model.diffusion_model.{name}": f"model.diffusion_model.{name}"
        for name in (
            f"{place}.{end}".strip(".").replace("..", ".") for place, end in itertools.product(places, ends)
        )
    }
    found = convert_ldm_unet_checkpoint(names, unet.config)
    return {name: found[name] for name in unet.state_dict()}


def _ldm_vae_name(name: str, blocks: int) -> str:
    """A VAE's tensor name in diffusers -> in a single file."""
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{blocks - 1 - int(found[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    changes = {
        "down_blocks": "down",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "resnets": "block",
    }
    changes |= {"mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "conv_norm_out": "norm_out"}
    changes |= {
        "conv_shortcut": "nin_shortcut",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    for now, before in changes.items():
        name = name.replace(now, before)
    return f"first_stage_model.{name}"


@pytest.fixture(scope="module")
def file(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet: Any = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    vae: Any = AutoencoderKL.from_pretrained(tiny_pipeline, subfolder="vae")
    text: Any = CLIPTextModel.from_pretrained(tiny_pipeline, subfolder="text_encoder")
    ldm, prefix = _ldm_names(unet), "cond_stage_model.transformer.text_model."
    held = {ldm[name]: value for name, value in unet.state_dict().items()}
    held |= {
        f"{prefix}{name.removeprefix('text_model.')}": value for name, value in text.state_dict().items()
    }
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    held |= {_ldm_vae_name(name, 4): value for name, value in vae.state_dict().items()}
    safetensors.torch.save_file(held, path, {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def texts(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's configurations and tokenizers, without its weights."""
    folder = tmp_path_factory.mktemp("texts") / "config"
    ignore = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(tiny_pipeline, folder, ignore=ignore))


def _config(file: Path, texts: Path | str, place: Path, **overrides: Any) -> Config:
    return make_config(file, place, {"model.config": str(texts), **overrides})


def test_a_single_file_gives_what_its_folder_gives(
    tiny_pipeline: Path, file: Path, texts: Path, tmp_path: Path
) -> None:
    single, steps = load_policy(_config(file, texts, tmp_path))
    folder, same_steps = load_policy(make_config(tiny_pipeline, tmp_path))
    alone, _ = load_policy(_config(file, texts, tmp_path), network_only=True)
    assert steps == same_steps
    assert digest_base(single) == digest_base(folder) == digest_base(alone)
    assert digest_encoders_and_vae(single) == digest_encoders_and_vae(folder)
    plain: Any = StableDiffusionPipeline.from_single_file(str(file), config=str(texts), safety_checker=None)
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(plain, part).state_dict()
        for name, value in single.family.parts()[part].state_dict().items():
            if "lora_" not in name:
                assert torch.equal(value, theirs[name.replace(".base_layer", "")]), name


def test_the_type_asked_for_and_the_digests(file: Path, texts: Path, tmp_path: Path) -> None:
    small, _ = load_policy(_config(file, texts, tmp_path, **{"model.dtype": "bfloat16"}))
    kinds = {part: next(one.parameters()).dtype for part, one in small.family.parts().items()}
    assert kinds == {"unet": torch.bfloat16, "text_encoder": torch.bfloat16, "vae": torch.float32}
    before = digest_parts(texts, single_file=file)
    assert set(before) == {"model_index", "unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    other = tmp_path / "other.safetensors"
    other.write_bytes(file.read_bytes() + b"\0")
    now = digest_parts(texts, single_file=other)
    assert {name for name in now if now[name] != before[name]} == {"unet", "vae", "text_encoder"}


def test_what_kind_a_file_is_of_is_read_from_its_header(file: Path, tmp_path: Path) -> None:
    assert known_config(file) == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    xl = tmp_path / "xl.safetensors"
    name = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
    safetensors.torch.save_file({name: torch.zeros(8)}, xl)
    assert known_config(xl) == "stabilityai/stable-diffusion-xl-base-1.0"


def _without(part: str) -> Change:
    def change(held: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in held.items() if not name.startswith(part)}

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without("model.diffusion_model.middle_block.1."), "unet"),
        (_without("first_stage_model.decoder.mid."), "vae"),
        (_without("cond_stage_model."), "text_encoder"),
    ],
)
def test_a_file_that_lacks_something_is_refused(
    file: Path, texts: Path, tmp_path: Path, change: Change, reason: str
) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), other)
    with pytest.raises(ModelError, match=reason):
        load_policy(_config(other, texts, tmp_path))


def test_damaged_files_and_other_kinds_are_refused_without_loading(
    file: Path, texts: Path, tmp_path: Path
) -> None:
    check_model(ModelSection(path=str(file), config=str(texts)), SAMPLING)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        check_model(ModelSection(path=str(cut), config=str(texts)), SAMPLING)
    with pytest.raises(ModelError, match=r"model\.config is .*neither"):
        check_model(ModelSection(path=str(file), config=str(tmp_path / "nowhere")), SAMPLING)
    other = Path(shutil.copytree(texts, tmp_path / "other"))
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(ModelError, match=r"StableDiffusion3Pipeline.*save_pretrained"):
        check_model(ModelSection(path=str(file), config=str(other)), SAMPLING)


def test_settings_that_a_file_or_folder_does_not_honour_are_refused(tmp_path: Path) -> None:
    for wrong in ({"path": "x.safetensors", "variant": "fp16"}, {"path": "a/b", "config": "c/d"}):
        with pytest.raises(ValidationError):
            ModelSection.model_validate(wrong)


def test_a_quantised_file_is_refused(file: Path, texts: Path, tmp_path: Path) -> None:
    held = safetensors.torch.load_file(file)
    name = next(name for name in held if name.endswith(".weight"))
    other = tmp_path / "quantised.safetensors"
    safetensors.torch.save_file({**held, name: held[name].to(torch.int8)}, other, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{re.escape(name)} is int8"):
        check_model(ModelSection(path=str(other), config=str(texts)), SAMPLING)
