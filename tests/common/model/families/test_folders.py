"""Model folders that people bring: what is off in them is refused before weights are loaded, or honoured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTokenizer

from common.config.training import LONGEST_SIDE, ModelSection, SamplingSection
from common.errors import ModelError
from common.model.families import FAMILIES, check_model, load_family
from common.model.parts import Source
from tests.tiny_pipeline import MAX_TOKENS, make_tiny_xl_pipeline

SAMPLING = SamplingSection(steps=4, stochastic_steps="all_but_last")
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT, TEXT_2 = "text_encoder/model.safetensors", "text_encoder_2/model.safetensors"
TOKENIZER = "tokenizer/tokenizer_config.json"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_xl_pipeline(tmp_path_factory.mktemp("xl") / "pipeline")


@pytest.fixture
def folder(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))


@pytest.fixture
def xl(tiny_xl: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_xl, tmp_path / "model"))


def check(folder: Path, variant: str = "") -> None:
    check_model(ModelSection(path=str(folder), variant=variant), SAMPLING)


def load(folder: Path, variant: str = "") -> Any:
    return load_family(Source(ModelSection(path=str(folder), variant=variant), torch.device("cpu")), SAMPLING)


def edit(name: str, **values: object) -> Change:
    """... removes a key."""

    def change(folder: Path) -> None:
        path = folder / name
        record = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))

    return change


def tensors(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        content = safetensors.torch.load_file(folder / name)
        change(content)
        safetensors.torch.save_file(content, folder / name, {"format": "pt"})

    return apply


def encode(name: str, encoding: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text(), encoding=encoding)

    return change


def add_token(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<my-cat>"])
    tokenizer.save_pretrained(folder / "tokenizer")


def _without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text("{}")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")


def other_unet(**changes: object) -> Change:
    def change(folder: Path) -> None:
        config = {**json.loads((folder / "unet/config.json").read_text()), **changes}
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")

    return change


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (tensors(UNET, lambda held: held.pop("conv_in.weight")), ["unet", "lack", "conv_in.weight"]),
        (
            tensors(VAE, lambda held: held.pop("decoder.conv_in.bias")),
            ["vae", "lack", "decoder.conv_in.bias"],
        ),
        (tensors(TEXT, lambda held: held.popitem()), ["text_encoder", "lack"]),
        (
            tensors(UNET, lambda held: held.update({"q.lora_A": torch.zeros(1)})),
            ["none of", "q.lora_A"],
        ),
        (tensors(VAE, lambda held: held.update({"decoder.conv_in.bias": torch.zeros(1)})), ["(1,)", "(8,)"]),
        (
            tensors(
                UNET, lambda held: held.update({"conv_in.weight": held["conv_in.weight"].to(torch.int8)})
            ),
            ["unet", "conv_in.weight is int8"],
        ),
        (tensors(TEXT, lambda held: held.update({min(held): held[min(held)].bool()})), ["bool"]),
        (lambda folder: (folder / UNET).unlink(), ["unet", "no weights"]),
        (
            lambda folder: (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.ema.safetensors"),
            ["ema"],
        ),
        (edit("unet/config.json", block_out_channels=[8, 32]), ["unet", "shapes"]),
        (edit("unet/config.json", down_block_types=["DownBlock2D"]), ["unet"]),
        (edit("text_encoder/config.json", hidden_size=15), ["text_encoder"]),
        (add_token, ["<my-cat>", "vocab_size"]),
        (edit(TOKENIZER, pad_token=None), ["pad_token"]),
        (edit(TOKENIZER, model_max_length=2), ["model_max_length", "2"]),
        (other_unet(cross_attention_dim=32), ["cross_attention_dim", "32", "16"]),
        (other_unet(in_channels=9), ["9", "VAE has 4"]),
        (other_unet(time_cond_proj_dim=32), ["time_cond_proj_dim", "32"]),
        (other_unet(class_embed_type="timestep"), ["class_embed_type", "timestep"]),
        (other_unet(encoder_hid_dim=16, encoder_hid_dim_type="text_proj"), ["encoder_hid_dim"]),
        (edit("unet/config.json", attention_type="gated"), ["attention_type", "gated"]),
        (edit("unet/config.json", addition_embed_type="text"), ["addition_embed_type", "text"]),
        (edit("unet/config.json", of_a_later_version=1), ["unet/config.json", "of_a_later_version"]),
        (edit("unet/config.json", sample_size=None), ["sample_size", "sampling.height"]),
        (edit("unet/config.json", sample_size=10**9), ["sample_size", "sampling.height", str(LONGEST_SIDE)]),
        (edit("unet/config.json", sample_size=[8, 10**6]), ["sample_size", "sampling.width"]),
        (edit("vae/config.json", shift_factor=0.1), ["shift_factor"]),
        (edit("vae/config.json", latents_mean=[0.1] * 4), ["latents_mean"]),
        (edit("vae/config.json", out_channels=4), ["out_channels"]),
        *(
            (edit("vae/config.json", scaling_factor=value), ["vae/config.json", "scaling_factor"])
            for value in ("0.18", None, 0, float("nan"), float("inf"), True)
        ),
        (edit("unet/config.json", freq_shift="0"), ["unet/config.json", "freq_shift", "'0'"]),
        (edit("vae/config.json", force_upcast="false"), ["vae/config.json", "force_upcast"]),
        (edit(TOKENIZER, model_max_length="16"), [TOKENIZER, "model_max_length", "'16'"]),
        (_without_vocabulary, ["tokenizer", "vocab.json"]),
        (edit("text_encoder/config.json", quantization_config={"bits": 4}), ["quantization_config"]),
        (edit("model_index.json", vae=["diffusers", "AutoencoderTiny"]), ["vae", "AutoencoderTiny"]),
        (edit("model_index.json", text_encoder=[None, None]), ["text_encoder", "None"]),
        (edit("model_index.json", tokenizer=["transformers", "T5Tokenizer"]), ["T5Tokenizer"]),
        (
            edit("model_index.json", scheduler=["diffusers", "LCMScheduler"]),
            ["LCMScheduler", "DDIMScheduler"],
        ),
        (
            edit("model_index.json", _class_name="StableCascadePipeline"),
            ["StableCascadePipeline", *FAMILIES, "docs/models.md"],
        ),
        (edit("scheduler/scheduler_config.json", beta_schedule="cosine"), ["cosine"]),
        *(
            (encode(name, "utf-16"), [name, "UTF-8"])
            for name in (
                "model_index.json",
                "unet/config.json",
                "text_encoder/config.json",
                "scheduler/scheduler_config.json",
                "tokenizer/tokenizer.json",
                TOKENIZER,
            )
        ),
    ],
)
def test_what_is_off_is_refused_before_weights_are_loaded(
    folder: Path, change: Change, reasons: list[str]
) -> None:
    change(folder)
    with pytest.raises(ModelError) as raised:
        check(folder)
    assert [reason for reason in reasons if reason not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (
            tensors(TEXT_2, lambda held: held.pop("text_projection.weight")),
            ["text_encoder_2", "text_projection"],
        ),
        (edit("text_encoder_2/config.json", projection_dim=8), ["projection_dim", "8"]),
        (edit("text_encoder_2/config.json", eos_token_id=7), ["eos_token_id", "7"]),
        (edit("unet/config.json", addition_embed_type=None), ["addition_embed_type", "None"]),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), ["tokenizer_2"]),
    ],
)
def test_what_is_off_in_an_xl_folder_is_refused(xl: Path, change: Change, reasons: list[str]) -> None:
    change(xl)
    with pytest.raises(ModelError) as raised:
        check(xl)
    assert [reason for reason in reasons if reason not in str(raised.value)] == []


@pytest.mark.parametrize(
    "change",
    [
        edit("model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"]),
        edit("model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]),
        edit("model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"]),
        edit("unet/config.json", decay=0.9999, optimization_step=7, upcast_attention=True, dropout=0.1),
        edit("text_encoder/config.json", return_dict=False, top_k=50, use_attention_mask=False),
        tensors(
            TEXT, lambda held: held.update({"text_model.embeddings.position_ids": torch.arange(24)[None]})
        ),
        tensors(TEXT, lambda held: held.update({"logit_scale": torch.zeros(())})),
        tensors(UNET, lambda held: held.update({name: value.double() for name, value in held.items()})),
        edit(TOKENIZER, model_max_length=...),
        edit(TOKENIZER, model_max_length=77),
        edit(TOKENIZER, model_max_length=MAX_TOKENS),
        encode("model_index.json", "utf-8-sig"),
        *(
            pytest.param(encode(name, "utf-8-sig"), marks=pytest.mark.slow)
            for name in (
                "unet/config.json",
                "vae/config.json",
                "text_encoder/config.json",
                "scheduler/scheduler_config.json",
                "tokenizer/tokenizer.json",
                TOKENIZER,
            )
        ),
    ],
)
def test_what_changes_nothing_loads_to_the_same(folder: Path, plain: dict[str, Any], change: Change) -> None:
    change(folder)
    assert outputs(load(folder)).keys() == plain.keys()
    for name, value in outputs(load(folder)).items():
        assert torch.equal(value, plain[name]), name


def outputs(family: Any) -> dict[str, Any]:
    states = family.embed(["a cat and a very long sentence about it"])["encoder_hidden_states"]
    latents = torch.randn(1, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = family.forward(
            family.network, latents, torch.tensor([9.0]), {"encoder_hidden_states": states}
        )
    return {"states": states, "output": output, "pixels": torch.from_numpy(family.decode(latents))}


@pytest.fixture(scope="module")
def plain(tiny_pipeline: Path) -> dict[str, Any]:
    return outputs(load(tiny_pipeline))


def _half(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        held = {key: value + 1 for key, value in safetensors.torch.load_file(folder / name).items()}
        safetensors.torch.save_file(held, folder / name.replace(".safetensors", ".fp16.safetensors"))


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_on_loading(folder: Path, name: str, number: float) -> None:
    tensors(name, lambda held: held[min(held)].view(-1)[-1:].fill_(number))(folder)
    with pytest.raises(ModelError, match="not finite") as raised:
        load(folder)
    assert min(safetensors.torch.load_file(folder / name)) in str(raised.value)
    assert name.split("/")[0] in str(raised.value)


def test_pixels_that_are_not_finite_are_the_vae_s_alone(folder: Path) -> None:
    family = load(folder)
    latents = torch.full((1, *family.latent_shape), torch.inf)
    assert family.decode(latents).shape[0] == 1  # told by the latents
    family.images.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="float32"):
        family.decode(torch.zeros_like(latents))


def test_the_variant_of_a_folder_is_honoured_part_by_part(folder: Path, plain: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="fp16"):
        check(folder, "fp16")
    _half(folder, (UNET,))
    family = load(folder, "fp16")
    assert not torch.equal(outputs(family)["output"], plain["output"])
    assert torch.equal(outputs(family)["states"], plain["states"])
    (folder / UNET).unlink()
    assert torch.equal(outputs(load(folder, "fp16"))["output"], outputs(family)["output"])
    with pytest.raises(ModelError, match=r"fp16: set model\.variant"):
        check(folder)


def test_shards_and_pickled_weights_are_checked_and_loaded(folder: Path, plain: dict[str, Any]) -> None:
    whole = load(folder)
    (folder / UNET).unlink()
    whole.network.save_pretrained(folder / "unet", max_shard_size="20KB")
    (folder / VAE).unlink()
    torch.save(whole.images.vae.state_dict(), folder / "vae/diffusion_pytorch_model.bin")
    (folder / TEXT).unlink()
    torch.save(whole.parts()["text_encoder"].state_dict(), folder / "text_encoder/pytorch_model.bin")
    for name, value in outputs(load(folder)).items():
        assert torch.equal(value, plain[name]), name
    torch.save({"decoder.conv_in.bias": torch.zeros(8)}, folder / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"vae.*lack"):
        check(folder)
    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        check(folder)


def test_old_names_of_attention_are_known(folder: Path, plain: dict[str, Any]) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(held: dict[str, Any]) -> None:
        for name in [name for name in held if ".attentions." in name]:
            new = name
            for now, before in old.items():
                new = new.replace(f".{now}.", f".{before}.")
            held[new] = held.pop(name)

    tensors(VAE, rename)(folder)
    assert torch.equal(outputs(load(folder))["pixels"], plain["pixels"])


def test_a_prompt_is_as_long_as_both_allow(folder: Path) -> None:
    edit(TOKENIZER, model_max_length=7)(folder)
    assert load(folder).embed(["a cat"])["encoder_hidden_states"].shape[1] == 7


def test_sizes_that_a_unet_does_not_say_or_says_wrongly(folder: Path) -> None:
    edit("unet/config.json", sample_size=None)(folder)
    sized = SAMPLING.model_copy(update={"height": 32, "width": 64})
    source = Source(ModelSection(path=str(folder)), torch.device("cpu"))
    assert load_family(source, sized).latent_shape == (4, 4, 8)
    edit("unet/config.json", sample_size=32, _diffusers_version="0.6.0")(folder)
    assert load(folder).latent_shape == (4, 64, 64)


def test_a_hub_id_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="nobody/nothing"):
        check(Path("nobody/nothing"))


def test_the_small_files_of_a_hub_id_are_checked(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = Path(shutil.copytree(tiny_pipeline, repository / "snapshots" / ("a" * 40)))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = ModelSection(path="owner/name")
    check_model(model, SAMPLING)
    load_family(Source(model, torch.device("cpu")), SAMPLING)
    _half(snapshot, (UNET,))
    halved = ModelSection(path="owner/name", variant="fp16")
    family = load_family(Source(halved, torch.device("cpu")), SAMPLING)
    assert torch.equal(outputs(family)["output"], outputs(load(snapshot, "fp16"))["output"])
    edit("unet/config.json", time_cond_proj_dim=8)(snapshot)
    with pytest.raises(ModelError, match="time_cond_proj_dim"):
        check_model(model, SAMPLING)
