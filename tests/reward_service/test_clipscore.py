"""CLIPScore against its formula and the model's own logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import CLIPModel, CLIPTokenizer

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.scorer import check_scorer
from reward_service.scorers.clipscore import ClipScore
from tests.reward_service.by_hand import cropped

PROMPTS = ["a red cat", "two blue dogs near a tree", "a red cat", "sun"]
MakeImages = Callable[[int, int], NDArray[np.uint8]]


def by_hand(folder: Path, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    cosines = []
    for prompt, image in zip(prompts, images, strict=True):
        tokens = tokenizer(f"A photo depicts {prompt}", truncation=True, max_length=40)["input_ids"]
        with torch.no_grad():
            output = model(input_ids=torch.tensor([tokens]), pixel_values=cropped(image, 32))
            cosines.append(float(output.logits_per_image / model.logit_scale.exp()))
    return 2.5 * np.maximum(cosines, 0.0)


@pytest.fixture(scope="module")
def turned(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with every cosine's sign turned."""
    folder = tmp_path_factory.mktemp("turned")
    shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    model = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.visual_projection.weight.neg_()
    model.save_pretrained(folder)
    return folder


def test_scores_follow_the_formula_and_are_never_negative(
    clip_folder: Path, turned: Path, make_images: MakeImages
) -> None:
    images, prompts = make_images(0, 16), [PROMPTS[row % 4] for row in range(16)]
    one, other = (ClipScore(path=str(folder)).score(prompts, images) for folder in (clip_folder, turned))
    assert one.dtype == np.float64
    np.testing.assert_allclose(one, by_hand(clip_folder, prompts, images), atol=3e-6)
    np.testing.assert_allclose(other, by_hand(turned, prompts, images), atol=3e-6)
    assert np.all(np.minimum(one, other) == 0.0)
    assert np.all(np.maximum(one, other) > 0.0)
    assert max(one.max(), other.max()) <= 2.5


def test_many_images_score_as_each_alone(clip_folder: Path, turned: Path, make_images: MakeImages) -> None:
    for folder in (clip_folder, turned):
        scorer = build_scorer(RewardSpec(scorer="clipscore", options={"path": str(folder)}))
        check_scorer(scorer, PROMPTS, make_images(2, 4))


def test_a_bin_file_is_read_where_there_are_no_safetensors(
    clip_folder: Path, turned: Path, make_images: MakeImages, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(turned, old)
    tensors = CLIPModel.from_pretrained(turned).state_dict()
    # Older transformers saved this buffer as well.
    torch.save(
        {**tensors, "text_model.embeddings.position_ids": torch.arange(40)[None]}, old / "pytorch_model.bin"
    )
    (old / "model.safetensors").write_bytes((clip_folder / "model.safetensors").read_bytes())
    images = make_images(1, 4)
    np.testing.assert_array_equal(
        ClipScore(path=str(old)).score(PROMPTS, images),
        ClipScore(path=str(clip_folder)).score(PROMPTS, images),
    )
    digest = ClipScore(path=str(old)).digest
    (old / "model.safetensors").unlink()
    ClipScore.check_options(path=str(old))
    np.testing.assert_allclose(
        ClipScore(path=str(old)).score(PROMPTS, images),
        ClipScore(path=str(turned)).score(PROMPTS, images),
        atol=1e-6,
    )
    assert ClipScore(path=str(old)).digest != digest


def test_the_default_is_taken_from_the_hubs_cache(
    turned: Path, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--openai--clip-vit-base-patch32"
    shutil.copytree(turned, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    tensors = CLIPModel.from_pretrained(turned).state_dict()
    torch.save(tensors, repository / "snapshots" / commit / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    scores = ClipScore().score(PROMPTS, make_images(1, 4))
    np.testing.assert_allclose(
        scores, ClipScore(path=str(turned)).score(PROMPTS, make_images(1, 4)), atol=1e-6
    )
    with pytest.raises(RewardError, match="Cannot get CLIP model"):
        ClipScore(revision="other").score(PROMPTS, make_images(1, 4))


def test_wrong_folders_are_refused_early(clip_folder: Path, tmp_path: Path) -> None:
    ClipScore.check_options()
    with pytest.raises(RewardError, match=r"no config.json"):
        ClipScore.check_options(path=str(tmp_path))
    shutil.copy(clip_folder / "config.json", tmp_path)
    with pytest.raises(RewardError, match=r"neither model.*safetensors nor pytorch_model.bin"):
        ClipScore.check_options(path=str(tmp_path))
