"""HPSv2 against a CLIP by hand from open_clip's tensors; both forms of its weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.reward import check_scorer
from reward_service.scorers.hpsv2 import HpsV2
from reward_service.scorers.images import Letterbox
from tests.reward_service.by_hand import (
    BLACK,
    PROMPTS,
    MakeImages,
    Tensors,
    as_input,
    cubic,
    letterboxed,
    open_clip_cosine,
)

CHECKPOINT = "HPS_v2.1_compressed.pt"
NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def to_open_clip(model: CLIPModel) -> Tensors:
    """The tensors of a transformers CLIPModel under open_clip's names: the scorer's way turned round."""
    own = model.state_dict()
    text, vision = "text_model.embeddings", "vision_model.embeddings"
    tensors = {
        "logit_scale": own["logit_scale"],
        "token_embedding.weight": own[f"{text}.token_embedding.weight"],
        "positional_embedding": own[f"{text}.position_embedding.weight"],
        "text_projection": own["text_projection.weight"].T,
        "visual.class_embedding": own[f"{vision}.class_embedding"],
        "visual.positional_embedding": own[f"{vision}.position_embedding.weight"],
        "visual.conv1.weight": own[f"{vision}.patch_embedding.weight"],
        "visual.proj": own["visual_projection.weight"].T,
    }
    towers = (("text_model", ""), ("vision_model", "visual."))
    norms = (
        ("final_layer_norm", "ln_final"),
        ("pre_layrnorm", "visual.ln_pre"),
        ("post_layernorm", "visual.ln_post"),
    )
    for kind in ("weight", "bias"):
        for norm, name in norms:
            tower = "text_model" if norm.startswith("final") else "vision_model"
            tensors[f"{name}.{kind}"] = own[f"{tower}.{norm}.{kind}"]
        for tower, start in towers:
            for number in range(2):
                layer, block = f"{tower}.encoder.layers.{number}", f"{start}transformer.resblocks.{number}"
                fused = [own[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(fused)
                tensors |= {f"{block}.{b}.{kind}": own[f"{layer}.{a}.{kind}"] for a, b in NAMES.items()}
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def clip(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder whose weights and biases are all random, exact in float16, with exact GELU."""
    folder = tmp_path_factory.mktemp("hps_clip")
    shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    config: Any = CLIPConfig.from_pretrained(clip_folder)
    config.text_config.hidden_act = config.vision_config.hidden_act = "gelu"
    torch.manual_seed(1)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + torch.randn_like(parameter) * 0.1).half())
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tensors(clip: Path) -> Tensors:
    return to_open_clip(CLIPModel.from_pretrained(clip))


@pytest.fixture
def published(tensors: Tensors, tmp_path: Path) -> Path:
    """A folder as its authors publish it: a checkpoint in float16."""
    folder = tmp_path / "HPSv2"
    folder.mkdir()
    torch.save({"state_dict": {name: tensor.half() for name, tensor in tensors.items()}}, folder / CHECKPOINT)
    return folder


@pytest.fixture
def base(clip_folder: Path, tmp_path: Path) -> Path:
    """Tokenizer and configuration of the CLIP it was tuned from, which says QuickGELU; no weights."""
    folder = tmp_path / "base"
    shutil.copytree(clip_folder, folder)
    (folder / "model.safetensors").unlink()
    (folder / "preprocessor_config.json").unlink()
    return folder


def by_hand(tensors: Tensors, tokens: Path, prompts: list[str], images: NDArray[np.uint8]) -> list[float]:
    tokenizer = CLIPTokenizer.from_pretrained(tokens)
    return [
        open_clip_cosine(tensors, letterboxed(image, 32), tokenizer(prompt)["input_ids"], (4, 4))
        for prompt, image in zip(prompts, images, strict=True)
    ]


@pytest.mark.parametrize("size", [(48, 48), (40, 72), (75, 41), (20, 32)])
def test_a_published_checkpoint_scores_as_by_hand(
    published: Path, base: Path, tensors: Tensors, size: tuple[int, int]
) -> None:
    images = np.random.default_rng(3).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    scores = HpsV2(path=str(published), base=str(base)).score(PROMPTS, images)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, by_hand(tensors, base, PROMPTS, images), atol=2e-6)
    assert np.ptp(scores) > 0.01
    assert np.abs(scores).max() < 1.0


def test_a_transformers_folder_and_safetensors_give_the_same(
    published: Path, base: Path, clip: Path, tensors: Tensors, make_images: MakeImages, tmp_path: Path
) -> None:
    images = make_images(1, 4)
    expected = HpsV2(path=str(published), base=str(base)).score(PROMPTS, images)
    assert HpsV2(path=str(clip), base=str(clip)).score(PROMPTS, images) == pytest.approx(expected, abs=1e-6)
    save_file(tensors, tmp_path / "HPS_v2_compressed.safetensors")
    older = HpsV2(path=str(tmp_path), release="2.0", base=str(base))
    np.testing.assert_array_equal(older.score(PROMPTS, images), expected)


def test_each_release_has_its_own_checkpoint(
    published: Path, base: Path, tensors: Tensors, make_images: MakeImages
) -> None:
    HpsV2.check_options(path=str(published), release=2.1, base=str(base))
    with pytest.raises(RewardError, match=r"release 2\.0"):
        HpsV2.check_options(path=str(published), release="2.0", base=str(base))
    older = {**tensors, "visual.proj": -tensors["visual.proj"]}
    torch.save({"state_dict": older}, published / "HPS_v2_compressed.pt")
    both = [HpsV2(path=str(published), release=release, base=str(base)) for release in ("2.0", "2.1")]
    scores = [scorer.score(PROMPTS, make_images(1, 4)) for scorer in both]
    np.testing.assert_allclose(scores[0], -scores[1], atol=1e-6)
    assert both[0].digest != both[1].digest


def test_many_images_score_as_each_alone(published: Path, base: Path, make_images: MakeImages) -> None:
    spec = RewardSpec(scorer="hpsv2", options={"path": str(published), "base": str(base)})
    check_scorer(build_scorer(spec), PROMPTS, make_images(2, 4))


def test_images_of_the_models_size_are_not_resized_and_bars_are_black() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images.flags.writeable = False
    together = torch.cat([as_input(image / 255.0) for image in images])
    torch.testing.assert_close(Letterbox(32, True)(images), together)
    wide = Letterbox(32, True)(images[:, :16])
    torch.testing.assert_close(wide[:, :, 8:24], together[:, :, :16])
    torch.testing.assert_close(wide[:1, :, :8], as_input(np.zeros((8, 32, 3))))


@pytest.mark.parametrize("shape", [(75, 41), (20, 17), (90, 1)])
def test_without_antialias_it_is_plain_cubic_convolution(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(4).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    high, wide = 32, max(1, round(shape[1] * 32 / shape[0]))
    small = cubic(cubic(image[0] / 255.0, high).swapaxes(0, 1), wide).swapaxes(0, 1)
    left = (32 - wide) // 2
    square = np.zeros((32, 32, 3))
    square[:, left : left + wide] = small
    torch.testing.assert_close(Letterbox(32, False)(image), as_input(square), atol=2e-5, rtol=0.0)


def test_digest_names_weights_base_and_options_not_the_place(
    published: Path, base: Path, tmp_path: Path
) -> None:
    digest = HpsV2(path=str(published), base=str(base)).digest
    shutil.copytree(published, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("notes")
    assert HpsV2(path=str(tmp_path / "copy"), base=str(base)).digest == digest
    assert HpsV2(path=str(published), base=str(base), antialias=False).digest != digest
    config = base / "config.json"
    config.write_text(config.read_text() + " ")
    assert HpsV2(path=str(published), base=str(base)).digest != digest


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda path, base: (path / CHECKPOINT).unlink(), "CLIPModel"),
        (lambda path, base: (base / "config.json").unlink(), "config.json"),
        (lambda path, base: (base / "config.json").write_text('{"model_type": "blip"}'), "'blip'"),
        (lambda path, base: (base / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_wrong_folders_are_refused_early(
    published: Path, base: Path, break_it: Callable[[Path, Path], object], reason: str
) -> None:
    break_it(published, base)
    with pytest.raises(RewardError, match=reason):
        HpsV2.check_options(path=str(published), base=str(base))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"visual.head.weight": torch.zeros(1)}, "visual.head.weight"),
        ({"visual.ln_pre.bias": None}, "pre_layrnorm.bias"),
        ({"visual.proj": torch.zeros(3, 3)}, "do not fit"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    published: Path, base: Path, tensors: Tensors, change: dict[str, torch.Tensor | None], reason: str
) -> None:
    changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
    torch.save({"state_dict": changed}, published / CHECKPOINT)
    with pytest.raises(RewardError, match=reason):
        HpsV2(path=str(published), base=str(base)).score(["a"], BLACK)
