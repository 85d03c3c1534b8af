"""Pipeline families against diffusers' own pipeline, and folders that are none."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from common.config.training import ModelSection, SamplingSection
from common.errors import ModelError
from common.model.families import check_model, load_family
from common.model.families.stable_diffusion import StableDiffusionFamily
from common.model.parts import Source
from common.model.text import EMBEDDED_PROMPTS

CPU = torch.device("cpu")
SAMPLING = SamplingSection(steps=4, stochastic_steps="all_but_last")
PROMPTS = ("a cat", "a very long prompt that does not fit into the few tokens of the tiny model, by far", "")


def load(folder: Path, sampling: SamplingSection = SAMPLING, **model: Any) -> Any:
    return load_family(Source(ModelSection(path=str(folder), **model), CPU), sampling)


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> StableDiffusionFamily:
    loaded = load(tiny_pipeline)
    assert isinstance(loaded, StableDiffusionFamily)
    return loaded


@pytest.fixture(scope="module")
def plain(tiny_pipeline: Path) -> Any:
    """Its VAE is frozen as ours is: torch rounds by requires_grad."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.vae.requires_grad_(False)
    return pipeline


def test_embedding_is_that_of_diffusers(family: StableDiffusionFamily, plain: Any) -> None:
    own = family.embed(PROMPTS)["encoder_hidden_states"]
    for row, prompt in zip(own, PROMPTS, strict=True):
        expected, empty = plain.encode_prompt(prompt, CPU, 1, do_classifier_free_guidance=True)
        torch.testing.assert_close(row, expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own[2], empty[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(own[0], own[1])


def test_pictures_are_those_of_diffusers(family: StableDiffusionFamily, plain: Any) -> None:
    latents = torch.randn(3, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    pixels = family.decode(latents)
    with torch.no_grad():
        images = plain.vae.decode(latents / plain.vae.config.scaling_factor, return_dict=False)[0]
    pictures = plain.image_processor.postprocess(images, output_type="pil")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.stack([np.asarray(picture) for picture in pictures]))


def test_loaded_parts_are_frozen_and_in_evaluation_mode(family: StableDiffusionFamily) -> None:
    assert family.latent_shape == (4, 8, 8)
    assert set(family.parts()) == {"unet", "vae", "text_encoder"}
    for module in family.parts().values():
        assert not module.training
        assert not any(value.requires_grad for value in module.parameters())
        # CPU kernels round by alignment: a copy of the weights must lie as they do.
        assert all(value.data_ptr() % 64 == 0 for value in module.parameters())
    assert not family.embed(["a"])["encoder_hidden_states"].requires_grad


def test_clip_sample_is_switched_off_as_diffusers_does(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_pipeline, tmp_path)
    _edit("scheduler/scheduler_config.json", clip_sample=True)(folder)
    assert load(folder).scheduler[1]["clip_sample"] is False


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
        (_remove("model_index.json"), "model_index"),
        (_write("model_index.json", "{"), "model_index"),
        (_write("model_index.json", "[]"), "model_index"),
        (_edit("model_index.json", _class_name="KandinskyPipeline"), "KandinskyPipeline.*FluxPipeline"),
        (_remove("scheduler"), "scheduler_config"),
        (
            _edit("scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
            "FlowMatchEulerDiscreteScheduler",
        ),
        (_edit("scheduler/scheduler_config.json", prediction_type="flow"), "prediction_type"),
        (_edit("scheduler/scheduler_config.json", thresholding=True), "thresholding"),
        (_remove("unet"), "unet/"),
        (_remove("vae/config.json"), "vae/"),
        (_remove("text_encoder"), "text_encoder/"),
        (_remove("tokenizer"), "tokenizer/"),
    ],
)
def test_folders_that_are_no_pipeline_are_refused_without_loading(
    tiny_pipeline: Path, tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    folder = _copy(tiny_pipeline, tmp_path)
    check_model(ModelSection(path=str(folder)), SAMPLING)
    change(folder)
    with pytest.raises(ModelError, match=reason):
        check_model(ModelSection(path=str(folder)), SAMPLING)


@pytest.mark.parametrize(
    "change",
    [
        _remove("unet/diffusion_pytorch_model.safetensors"),
        _cut("unet/diffusion_pytorch_model.safetensors"),
        _cut("text_encoder/model.safetensors"),
        _edit("unet/config.json", block_out_channels=[16, 32]),
        _edit("text_encoder/config.json", hidden_size=32),
        _edit("unet/config.json", sample_size=None),
    ],
)
def test_damaged_folders_are_refused_by_loading(
    tiny_pipeline: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = _copy(tiny_pipeline, tmp_path)
    change(folder)
    with pytest.raises(ModelError):
        load(folder)


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/model", "word", "a/b/c"])
def test_paths_that_are_neither_folder_nor_hub_id_are_refused(source: str) -> None:
    with pytest.raises(ModelError, match="neither a folder that is there nor a hub id"):
        check_model(ModelSection(path=source), SAMPLING)


def test_a_prompt_is_embedded_alone_and_remembered(family: StableDiffusionFamily) -> None:
    calls: list[int] = []
    assert family.text is not None
    encoder = family.text.encoders["text_encoder"].encoder
    handle = encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    prompts = [f"prompt {number}" for number in range(EMBEDDED_PROMPTS)]
    together = family.embed(prompts[:3])["encoder_hidden_states"]
    assert len(calls) == 3
    for row, prompt in zip(together, prompts, strict=False):
        assert torch.equal(family.embed([prompt])["encoder_hidden_states"][0], row)
    assert len(calls) == 3
    for prompt in prompts:
        family.embed([prompt])
    family.embed(["one more"])
    assert len(calls) == EMBEDDED_PROMPTS + 1
    family.embed(prompts[:1])
    handle.remove()
    assert len(calls) == EMBEDDED_PROMPTS + 2


def test_prompts_that_do_not_fit_are_counted_and_said_once(
    tiny_pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = load(tiny_pipeline)
    fresh.embed([PROMPTS[1] + str(number) for number in range(3)])
    fresh.embed(["a cat"])
    assert fresh.text.encoders["text_encoder"].cut_prompts == 3
    assert len([record for record in caplog.records if "tokens" in record.message]) == 1


@pytest.mark.parametrize("place", ["offload", "drop"])
def test_a_text_encoder_that_was_put_away_comes_back(
    tiny_pipeline: Path, family: StableDiffusionFamily, place: str
) -> None:
    loaded = load(tiny_pipeline, text_encoder=place)
    for prompt in (*PROMPTS, PROMPTS[0]):
        embedded = loaded.embed([prompt])["encoder_hidden_states"]
        assert torch.equal(embedded, family.embed([prompt])["encoder_hidden_states"])


def test_a_dropped_text_encoder_is_gone_and_must_come_back_the_same(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = _copy(tiny_pipeline, tmp_path)
    dropped = load(folder, text_encoder="drop")
    encoder = weakref.ref(dropped.parts()["text_encoder"])
    weight = weakref.ref(next(encoder().parameters()))
    embedded = dropped.embed(PROMPTS[:1])["encoder_hidden_states"]
    assert (encoder(), weight()) == (None, None)
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights[next(iter(weights))].view(-1)[0] += 1.0
    save_file(weights, path, {"format": "pt"})
    assert torch.equal(dropped.embed(PROMPTS[:1])["encoder_hidden_states"], embedded)
    with pytest.raises(ModelError, match=r"read again.* files have changed"):
        dropped.embed(PROMPTS[1:])


def test_images_are_decoded_in_chunks(tiny_pipeline: Path, family: StableDiffusionFamily) -> None:
    latents = torch.randn(5, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    small = load(tiny_pipeline, vae_chunk=2)
    seen: list[int] = []
    small.images.vae.decoder.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    pixels = small.decode(latents)
    assert seen == [2, 2, 1]
    assert np.abs(pixels.astype(int) - family.decode(latents)).max() <= 1


def test_another_size_of_images(tiny_pipeline: Path) -> None:
    other = load(tiny_pipeline, SAMPLING.model_copy(update={"height": 32, "width": 96}))
    assert (other.latent_shape, other.size) == ((4, 4, 12), (32, 96))
    assert other.decode(torch.zeros(1, 4, 4, 12)).shape == (1, 32, 96, 3)
    with pytest.raises(ModelError, match=r"sampling\.width is 63.* multiple of 8"):
        load(tiny_pipeline, SAMPLING.model_copy(update={"width": 63}))


def test_untrained_weights_in_bfloat16(tiny_pipeline: Path, family: StableDiffusionFamily) -> None:
    small = load(tiny_pipeline, dtype="bfloat16")
    kinds = {name: next(part.parameters()).dtype for name, part in small.parts().items()}
    # The VAE's configuration says force_upcast.
    assert kinds == {"unet": torch.bfloat16, "text_encoder": torch.bfloat16, "vae": torch.float32}
    states = small.embed(["a cat"])["encoder_hidden_states"]
    assert states.dtype == torch.float32
    torch.testing.assert_close(states, family.embed(["a cat"])["encoder_hidden_states"], rtol=0.05, atol=0.05)
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 100.0])
    with torch.no_grad():
        outputs = [
            one.forward(one.network, latents, times, {"encoder_hidden_states": states.repeat(2, 1, 1)})
            for one in (small, family)
        ]
    assert outputs[0].dtype == torch.float32
    torch.testing.assert_close(*outputs, rtol=0.1, atol=0.1)
