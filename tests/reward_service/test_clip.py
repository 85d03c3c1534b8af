"""The CLIP scorer against preprocessing by hand and the model's own logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.scorer import check_scorer
from reward_service.scorers.clip import ClipScorer

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
PROMPTS = ["a red cat", "two blue dogs near a tree", "a red cat", "sun"]
MakeImages = Callable[[int, int], NDArray[np.uint8]]


def cosines_by_hand(folder: Path, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """One image and prompt at a time: resize, crop, normalise, and the model's logit over its scale."""
    model = CLIPModel.from_pretrained(folder).eval()
    model.requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    cosines = []
    for prompt, image in zip(prompts, images, strict=True):
        height, width = image.shape[:2]
        scale = 32 / min(height, width)
        size = (max(32, int(width * scale)), max(32, int(height * scale)))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        top, left = (small.shape[0] - 32) // 2, (small.shape[1] - 32) // 2
        pixels = (small[top : top + 32, left : left + 32] / 255.0 - MEAN) / DEVIATION
        output = model(
            input_ids=tokenizer(prompt, return_tensors="pt")["input_ids"],
            pixel_values=torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float(),
        )
        cosines.append(float(output.logits_per_image / model.logit_scale.exp()))
    return np.array(cosines)


def test_scores_are_the_models_own_cosines(clip_folder: Path, make_images: MakeImages) -> None:
    images = make_images(0, 4)
    scores = ClipScorer(path=str(clip_folder)).score(PROMPTS, images)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, cosines_by_hand(clip_folder, PROMPTS, images), atol=1e-6)
    assert np.ptp(scores) > 0.01


def test_images_that_are_not_square_are_cropped_in_the_middle(clip_folder: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (2, 40, 72, 3), dtype=np.uint8)
    scores = ClipScorer(path=str(clip_folder)).score(PROMPTS[:2], images)
    np.testing.assert_allclose(scores, cosines_by_hand(clip_folder, PROMPTS[:2], images), atol=1e-6)


def test_prompt_prefix_is_part_of_the_prompt_and_of_the_digest(
    clip_folder: Path, make_images: MakeImages
) -> None:
    images = make_images(1, 2)
    plain, prefixed = (
        ClipScorer(path=str(clip_folder)),
        ClipScorer(path=str(clip_folder), prompt_prefix="a photo of "),
    )
    expected = plain.score(["a photo of a cat", "a photo of a dog"], images)
    np.testing.assert_array_equal(prefixed.score(["a cat", "a dog"], images), expected)
    assert plain.digest != prefixed.digest


def test_a_prompt_that_is_too_long_is_cut_not_refused(clip_folder: Path, make_images: MakeImages) -> None:
    long = "a cat " * 30
    scores = ClipScorer(path=str(clip_folder)).score(
        [long, long + "more"], make_images(2, 1).repeat(2, axis=0)
    )
    assert scores[0] == scores[1]


def test_many_images_score_as_each_alone(clip_folder: Path, make_images: MakeImages) -> None:
    scorer = ClipScorer(path=str(clip_folder))
    images = make_images(4, 70)
    prompts = [PROMPTS[row % 4] for row in range(70)]
    alone = [scorer.score([prompt], image[None])[0] for prompt, image in zip(prompts, images, strict=True)]
    np.testing.assert_allclose(scorer.score(prompts, images), alone, atol=1e-6)
    spec = RewardSpec(scorer="clip", options={"path": str(clip_folder)})
    check_scorer(build_scorer(spec), prompts[:3], images[:3])


def test_each_prompt_is_embedded_once_a_call(
    clip_folder: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    original = CLIPModel.get_text_features

    def counting(self: CLIPModel, input_ids: torch.Tensor, **options: torch.Tensor) -> object:
        embedded.append(len(input_ids))
        return original(self, input_ids=input_ids, **options)

    monkeypatch.setattr(CLIPModel, "get_text_features", counting)
    ClipScorer(path=str(clip_folder)).score(PROMPTS, make_images(5, 4))
    assert embedded == [3]


def test_digest_names_weights_not_the_place(clip_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    (copy / "README.md").write_text("notes")
    digest = ClipScorer(path=str(clip_folder)).digest
    assert ClipScorer(path=str(copy)).digest == digest
    model = CLIPModel.from_pretrained(copy)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    model.save_pretrained(copy)
    assert ClipScorer(path=str(copy)).digest != digest


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "no model configuration"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "siglip"}'), "'siglip'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "pickle files"),
    ],
)
def test_a_folder_that_is_no_clip_model_is_refused_early(
    clip_folder: Path, tmp_path: Path, break_it: Callable[[Path], object], reason: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    break_it(copy)
    with pytest.raises(RewardError, match=reason):
        ClipScorer.check_options(path=str(copy))


def test_a_mistyped_folder_is_not_taken_for_a_hub_id(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(clip_folder, tmp_path / "models" / "proxy")
    monkeypatch.chdir(tmp_path)
    ClipScorer.check_options(path="models/proxy")
    ClipScorer.check_options(path="openai/clip-vit-large-patch14")
    with pytest.raises(RewardError, match=r"models/ holds \['proxy'\]"):
        ClipScorer.check_options(path="models/prxoy")


def test_a_hub_id_that_cannot_be_fetched_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewardError, match="Cannot get CLIP model 'nobody/nothing'"):
        ClipScorer(path="nobody/nothing").score(["a"], np.zeros((1, 8, 8, 3), np.uint8))


def test_damaged_weights_are_a_reward_error(clip_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(RewardError, match="Cannot load the CLIP model"):
        ClipScorer(path=str(copy)).score(["a"], np.zeros((1, 8, 8, 3), np.uint8))


def test_weights_that_lack_a_tensor_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"lack 1 tensors.*visual_projection"):
        ClipScorer(path=str(copy)).score(["a"], np.zeros((1, 8, 8, 3), np.uint8))
