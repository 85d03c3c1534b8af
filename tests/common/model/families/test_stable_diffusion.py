"""Pipeline families against diffusers' own pipeline, and folders that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from common.errors import ModelError
from common.model.families.stable_diffusion import PipelineFamily, check_model_folder, load_family

CPU = torch.device("cpu")
PROMPTS = ("a cat", "a very long prompt that does not fit into the few tokens of the tiny model, by far", "")


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> PipelineFamily:
    return load_family(str(tiny_pipeline), CPU)


@pytest.fixture(scope="module")
def plain(tiny_pipeline: Path) -> Any:
    """Its VAE is frozen as ours is: torch rounds by requires_grad."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.vae.requires_grad_(False)
    return pipeline


def test_embedding_is_that_of_diffusers(family: PipelineFamily, plain: Any) -> None:
    own = family.embed(PROMPTS)["encoder_hidden_states"]
    for row, prompt in zip(own, PROMPTS, strict=True):
        expected, empty = plain.encode_prompt(prompt, CPU, 1, do_classifier_free_guidance=True)
        torch.testing.assert_close(row, expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own[2], empty[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(own[0], own[1])


def test_pictures_are_those_of_diffusers(family: PipelineFamily, plain: Any) -> None:
    latents = torch.randn(3, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    pixels = family.decode(latents)
    with torch.no_grad():
        images = plain.vae.decode(latents / plain.vae.config.scaling_factor, return_dict=False)[0]
    pictures = plain.image_processor.postprocess(images, output_type="pil")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.stack([np.asarray(picture) for picture in pictures]))


def test_loaded_parts_are_frozen_and_in_evaluation_mode(family: PipelineFamily) -> None:
    assert family.latent_shape == (4, 8, 8)
    for module in (family.unet, family.pipeline.vae, family.pipeline.text_encoder):  # type: ignore[attr-defined]
        assert not module.training
        assert not any(value.requires_grad for value in module.parameters())
        # CPU kernels round by alignment: a copy of the weights must lie as they do.
        assert all(value.data_ptr() % 64 == 0 for value in module.parameters())
    assert not family.embed(["a"])["encoder_hidden_states"].requires_grad


def test_clip_sample_is_switched_off_as_diffusers_does(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_pipeline, tmp_path)
    _edit("scheduler/scheduler_config.json", clip_sample=True)(folder)
    assert load_family(str(folder), CPU).scheduler_config["clip_sample"] is False


def _copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "model"))


def _remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _edit(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def _write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def _cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-100])

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_remove("model_index.json"), r"model_index\.json is missing, so it is no diffusers pipeline"),
        (_write("model_index.json", "{"), r"model_index\.json cannot be read"),
        (_write("model_index.json", "[]"), r"model_index\.json holds no mapping"),
        (_edit("model_index.json", _class_name="FluxPipeline"), "holds a FluxPipeline; supported are Stable"),
        (_remove("scheduler"), r"scheduler_config\.json is missing, so its noise schedule is unknown"),
        (
            _edit("scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
            "scheduler is FlowMatchEulerDiscreteScheduler; supported",
        ),
        (_edit("scheduler/scheduler_config.json", prediction_type="flow"), "predicts 'flow'"),
        (_edit("scheduler/scheduler_config.json", thresholding=True), "thresholding: true"),
        (_remove("unet"), r"incomplete: unet/ holds no config\.json"),
        (_remove("vae/config.json"), r"incomplete: vae/ holds no config\.json"),
        (_remove("text_encoder"), r"incomplete: text_encoder/ holds no config\.json"),
        (_remove("tokenizer"), r"incomplete: tokenizer/ holds no tokenizer\.json or vocab\.json"),
    ],
)
def test_folders_that_are_no_pipeline_are_refused_without_loading(
    tiny_pipeline: Path, tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    folder = _copy(tiny_pipeline, tmp_path)
    check_model_folder(str(folder))
    change(folder)
    with pytest.raises(ModelError, match=reason):
        check_model_folder(str(folder))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_remove("unet/diffusion_pytorch_model.safetensors"), "does not load as a Stable Diffusion pipeline"),
        (_cut("unet/diffusion_pytorch_model.safetensors"), "does not load as a Stable Diffusion pipeline"),
        (_cut("text_encoder/model.safetensors"), "does not load as a Stable Diffusion pipeline"),
        (_edit("unet/config.json", block_out_channels=[16, 32]), "does not load as a Stable Diffusion"),
        (_edit("text_encoder/config.json", hidden_size=32), "does not load as a Stable Diffusion pipeline"),
        (_edit("unet/config.json", sample_size=None), "has sample_size None"),
    ],
)
def test_damaged_folders_are_refused_by_loading(
    tiny_pipeline: Path, tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    folder = _copy(tiny_pipeline, tmp_path)
    change(folder)
    with pytest.raises(ModelError, match=reason):
        load_family(str(folder), CPU)


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/model", "word", "a/b/c"])
def test_paths_that_are_neither_folder_nor_hub_id_are_refused(source: str) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        check_model_folder(source)


def test_a_hub_id_is_left_to_loading() -> None:
    check_model_folder("owner/name")
