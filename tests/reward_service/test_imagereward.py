"""ImageReward against a BLIP by hand from the original's tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import BertTokenizer

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.reward import check_scorer
from reward_service.scorers.imagereward import ImageReward
from tests.reward_service.by_hand import BLACK, PROMPTS, MakeImages, Tensors, cropped, imagereward

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "red", "cat", "two", "blue", "dogs", "near", "tree", "sun"]
WIDTH, TEXT_WIDTH, LAYERS = 128, 24, 2
SETTINGS = {
    "vocab_size": len(WORDS) + 2,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "add_cross_attention": True,
    "encoder_width": 768,
}


def _shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of ImageReward's tensors, for 32x32 images of 8x8 patches."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 17, WIDTH)}
    linear: dict[str, tuple[int, int]] = {}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 8, 8), "patch_embed.proj.bias": (WIDTH,)}
    norms = {"norm": WIDTH}
    for number in range(LAYERS):
        block = f"blocks.{number}"
        linear |= {f"{block}.attn.qkv": (3 * WIDTH, WIDTH), f"{block}.attn.proj": (WIDTH, WIDTH)}
        linear |= {f"{block}.mlp.fc1": (160, WIDTH), f"{block}.mlp.fc2": (WIDTH, 160)}
        norms |= {f"{block}.norm1": WIDTH, f"{block}.norm2": WIDTH}
    own = _named("blip.visual_encoder.", shapes, linear, norms)
    shapes = {"embeddings.word_embeddings.weight": (len(WORDS) + 2, TEXT_WIDTH)}
    shapes |= {"embeddings.position_embeddings.weight": (40, TEXT_WIDTH)}
    linear, norms = {}, {"embeddings.LayerNorm": TEXT_WIDTH}
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        for kind, source in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            linear[f"{layer}.{kind}.self.query"] = (TEXT_WIDTH, TEXT_WIDTH)
            linear |= {f"{layer}.{kind}.self.{part}": (TEXT_WIDTH, source) for part in ("key", "value")}
            linear[f"{layer}.{kind}.output.dense"] = (TEXT_WIDTH, TEXT_WIDTH)
            norms[f"{layer}.{kind}.output.LayerNorm"] = TEXT_WIDTH
        linear |= {f"{layer}.intermediate.dense": (40, TEXT_WIDTH), f"{layer}.output.dense": (TEXT_WIDTH, 40)}
        norms[f"{layer}.output.LayerNorm"] = TEXT_WIDTH
    own |= _named("blip.text_encoder.", shapes, linear, norms)
    sizes = (TEXT_WIDTH, 16, 8, 8, 4, 1)
    places = zip((0, 2, 4, 6, 7), zip(sizes[1:], sizes, strict=False), strict=True)
    own |= _named("mlp.", {}, {f"layers.{number}": shape for number, shape in places}, {})
    return own | {"blip.vision_proj.weight": (4, WIDTH), "blip.text_proj.weight": (4, TEXT_WIDTH)}


def _named(
    start: str, others: dict[str, tuple[int, ...]], linear: dict[str, tuple[int, int]], norms: dict[str, int]
) -> dict[str, tuple[int, ...]]:
    own: dict[str, tuple[int, ...]] = {f"{start}{name}": shape for name, shape in others.items()}
    for name, shape in linear.items():
        own |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
    for name, width in norms.items():
        own |= {f"{start}{name}.weight": (width,), f"{start}{name}.bias": (width,)}
    return own


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    """Random tensors, and the position buffer that the original saves with them."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for name, shape in _shapes().items():
        # Wide enough that attention is not flat and the number depends on image and prompt.
        noise = torch.randn(shape, generator=generator)
        fan_in = max(1, noise[0].numel())
        is_scale = noise.ndim == 1 and name.endswith("weight")
        made[name] = 1.0 + 0.3 * noise if is_scale else 2.0 * noise / fan_in**0.5
    return made | {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}


@pytest.fixture
def folder(tensors: Tensors, tmp_path: Path) -> Path:
    """A folder as its authors publish it."""
    folder = tmp_path / "ImageReward"
    folder.mkdir()
    torch.save(tensors, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT's tokenizer with a handful of words."""
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def by_hand(tensors: Tensors, prompts: list[str], images: NDArray[np.uint8]) -> list[float]:
    numbers = []
    for prompt, image in zip(prompts, images, strict=True):
        tokens = [WORDS.index(word) for word in ["[CLS]", *prompt.lower().split()[:33], "[SEP]"]]
        numbers.append(imagereward(tensors, cropped(image, 32), tokens, (2, 4)))
    return numbers


@pytest.mark.parametrize("size", [(48, 48), (40, 75), (75, 41), (20, 20), (32, 35)])
def test_scores_are_those_by_hand(folder: Path, words: Path, tensors: Tensors, size: tuple[int, int]) -> None:
    images = np.random.default_rng(3).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    scores = ImageReward(path=str(folder), tokenizer=str(words)).score(PROMPTS, images)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, by_hand(tensors, PROMPTS, images), atol=1e-4)
    assert np.ptp(scores) > 0.1


def test_prompts_are_lowered_and_cut_at_35_tokens(
    folder: Path, words: Path, tensors: Tensors, make_images: MakeImages
) -> None:
    images = make_images(2, 1).repeat(3, axis=0)
    prompts = ["a Red cat " * 11, "a red cat " * 11 + "sun", "a red cat " * 5]
    scores = ImageReward(path=str(folder), tokenizer=str(words)).score(prompts, images)
    np.testing.assert_allclose(scores, by_hand(tensors, prompts, images), atol=1e-4)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert abs(scores[0] - scores[2]) > 1e-3


def test_many_images_score_as_each_alone(folder: Path, words: Path, make_images: MakeImages) -> None:
    spec = RewardSpec(scorer="imagereward", options={"path": str(folder), "tokenizer": str(words)})
    check_scorer(build_scorer(spec), PROMPTS, make_images(2, 4))
    scorer = ImageReward(path=str(folder), tokenizer=str(words))
    images, prompts = make_images(4, 35), [PROMPTS[row % 4] for row in range(35)]
    alone = [scorer.score([prompt], image[None])[0] for prompt, image in zip(prompts, images, strict=True)]
    np.testing.assert_allclose(scorer.score(prompts, images), alone, atol=1e-4)


def test_safetensors_are_preferred_and_give_the_same(
    folder: Path, words: Path, tensors: Tensors, make_images: MakeImages
) -> None:
    pickled = ImageReward(path=str(folder), tokenizer=str(words))
    expected, digest = pickled.score(PROMPTS, make_images(1, 4)), pickled.digest
    save_file(tensors, folder / "ImageReward.safetensors")
    (folder / "ImageReward.pt").write_bytes(b"damaged")
    safe = ImageReward(path=str(folder), tokenizer=str(words))
    np.testing.assert_array_equal(safe.score(PROMPTS, make_images(1, 4)), expected)
    assert safe.digest != digest


def test_digest_names_settings_and_not_what_lies_beside_them(folder: Path, words: Path) -> None:
    digest = ImageReward(path=str(folder), tokenizer=str(words)).digest
    (folder / "README.md").write_text("notes")
    assert ImageReward(path=str(folder), tokenizer=str(words)).digest == digest
    (folder / "med_config.json").write_text(json.dumps({**SETTINGS, "num_attention_heads": 2}))
    assert ImageReward(path=str(folder), tokenizer=str(words)).digest != digest


@pytest.mark.parametrize("missing", ["ImageReward.pt", "med_config.json"])
def test_wrong_folders_are_refused_early(folder: Path, words: Path, missing: str) -> None:
    ImageReward.check_options(path=str(folder), tokenizer=str(words))
    (folder / missing).unlink()
    with pytest.raises(RewardError, match=missing):
        ImageReward.check_options(path=str(folder), tokenizer=str(words))
    with pytest.raises(RewardError, match="tokenizer"):
        ImageReward.check_options(tokenizer=str(folder))


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        ({"blip.visual_encoder.norm.bias": None}, {}, "post_layernorm.bias"),
        (
            {"blip.text_encoder.encoder.layer.1.crossattention.self.key.bias": None},
            {},
            "crossattention.self.key",
        ),
        ({"blip.visual_encoder.pos_embed": torch.zeros(1, 19, WIDTH)}, {}, "BLIP"),
        ({"blip.visual_encoder.pos_embed": None}, {}, "pos_embed"),
        ({"mlp.layers.7.weight": torch.zeros(2, 4)}, {}, "layers.7"),
        ({}, {"vocab_size": 5}, "do not fit"),
        ({}, {"hidden_size": 16}, "do not fit"),
        ({}, {"hidden_act": None}, "lacks"),
    ],
)
def test_tensors_and_settings_of_another_model_are_refused(
    folder: Path,
    words: Path,
    tensors: Tensors,
    change: dict[str, torch.Tensor | None],
    settings: dict[str, object],
    reason: str,
) -> None:
    changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
    torch.save(changed, folder / "ImageReward.pt")
    named = {name: value for name, value in {**SETTINGS, **settings}.items() if value is not None}
    (folder / "med_config.json").write_text(json.dumps(named))
    with pytest.raises(RewardError, match=reason):
        ImageReward(path=str(folder), tokenizer=str(words)).score(["a"], BLACK)


def test_a_tokenizer_with_too_many_words_is_refused(folder: Path, tmp_path: Path) -> None:
    many = {word: number for number, word in enumerate([*WORDS, "x", "y", "z"])}
    BertTokenizer(vocab=many).save_pretrained(tmp_path / "many")
    with pytest.raises(RewardError, match="17 tokens"):
        ImageReward(path=str(folder), tokenizer=str(tmp_path / "many")).score(["a"], BLACK)
