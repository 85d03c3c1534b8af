"""The CLIP scorer, and the loader that all CLIP scorers share, against transformers' own model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.reward import check_scorer
from reward_service.scorers.clip import ClipScorer
from tests.reward_service.by_hand import BLACK, PROMPTS, MakeImages, clip_cosines


@pytest.fixture
def copy(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model to break."""
    return Path(shutil.copytree(clip_folder, tmp_path / "models" / "proxy"))


@pytest.mark.parametrize("size", [(48, 48), (40, 72), (72, 40)])
def test_scores_are_the_models_own_cosines(clip_folder: Path, size: tuple[int, int]) -> None:
    images = np.random.default_rng(3).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    scores = ClipScorer(path=str(clip_folder)).score(PROMPTS, images)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, clip_cosines(clip_folder, PROMPTS, images), atol=1e-6)
    assert np.ptp(scores) > 0.01


def test_prompt_prefix_is_part_of_the_prompt_and_of_the_digest(
    clip_folder: Path, make_images: MakeImages
) -> None:
    plain = ClipScorer(path=str(clip_folder))
    prefixed = ClipScorer(path=str(clip_folder), prompt_prefix="a photo of ")
    expected = plain.score(["a photo of a cat", "a photo of a dog"], make_images(1, 2))
    np.testing.assert_array_equal(prefixed.score(["a cat", "a dog"], make_images(1, 2)), expected)
    assert plain.digest != prefixed.digest


def test_a_prompt_that_is_too_long_is_cut_keeping_its_end_token(
    clip_folder: Path, make_images: MakeImages
) -> None:
    images, prompts = make_images(2, 1).repeat(2, axis=0), ["a cat " * 30, "a cat " * 30 + "more"]
    scores = ClipScorer(path=str(clip_folder)).score(prompts, images)
    np.testing.assert_allclose(scores, clip_cosines(clip_folder, prompts, images), atol=1e-6)
    assert scores[0] == scores[1]


def test_many_images_score_as_each_alone(clip_folder: Path, make_images: MakeImages) -> None:
    scorer = ClipScorer(path=str(clip_folder))
    images, prompts = make_images(4, 70), [PROMPTS[row % 4] for row in range(70)]
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


def test_digest_names_weights_not_the_place(clip_folder: Path, copy: Path) -> None:
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
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "configuration"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "siglip"}'), "'siglip'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "pickle"),
    ],
)
def test_a_folder_that_is_no_clip_model_is_refused_early(
    copy: Path, break_it: Callable[[Path], object], reason: str
) -> None:
    break_it(copy)
    with pytest.raises(RewardError, match=reason):
        ClipScorer.check_options(path=str(copy))


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"not weights"), "load"),
        (_lose_a_tensor, "visual_projection"),
    ],
)
def test_damaged_or_missing_weights_are_a_reward_error(
    copy: Path, break_it: Callable[[Path], object], reason: str
) -> None:
    break_it(copy)
    with pytest.raises(RewardError, match=reason):
        ClipScorer(path=str(copy)).score(["a"], BLACK)


def test_a_mistyped_folder_is_not_taken_for_a_hub_id(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parents[1])
    ClipScorer.check_options(path="models/proxy")
    ClipScorer.check_options(path="openai/clip-vit-large-patch14")
    with pytest.raises(RewardError, match="mean models/proxy"):
        ClipScorer.check_options(path="models/prxoy")
