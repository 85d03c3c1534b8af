"""CLIPScore against its formula and the model's own logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import CLIPModel

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.reward import check_scorer
from reward_service.scorers.clipscore import ClipScore
from tests.reward_service.by_hand import PROMPTS, MakeImages, clip_cosines


def by_hand(folder: Path, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
    cosines = clip_cosines(folder, [f"A photo depicts {prompt}" for prompt in prompts], images)
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
    scorer = build_scorer(RewardSpec(scorer="clipscore", options={"path": str(turned)}))
    check_scorer(scorer, PROMPTS, images[:4])


def test_a_bin_file_is_read_where_there_are_no_safetensors(
    clip_folder: Path, turned: Path, make_images: MakeImages, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(turned, old)
    tensors = CLIPModel.from_pretrained(turned).state_dict()
    # Older transformers saved this buffer as well.
    buffer = {"text_model.embeddings.position_ids": torch.arange(40)[None]}
    torch.save({**tensors, **buffer}, old / "pytorch_model.bin")
    (old / "model.safetensors").write_bytes((clip_folder / "model.safetensors").read_bytes())
    images = make_images(1, 4)
    both = ClipScore(path=str(old))
    np.testing.assert_allclose(both.score(PROMPTS, images), by_hand(clip_folder, PROMPTS, images), atol=3e-6)
    digest = both.digest
    (old / "model.safetensors").unlink()
    ClipScore.check_options(path=str(old))
    pickled = ClipScore(path=str(old))
    np.testing.assert_allclose(pickled.score(PROMPTS, images), by_hand(turned, PROMPTS, images), atol=3e-6)
    assert pickled.digest != digest


def test_the_default_is_taken_from_the_hubs_cache(
    turned: Path, make_images: MakeImages, hub_cache: Callable[[str], Path]
) -> None:
    snapshot = hub_cache("openai/clip-vit-base-patch32")
    shutil.copytree(turned, snapshot, dirs_exist_ok=True)
    (snapshot / "model.safetensors").unlink()
    torch.save(CLIPModel.from_pretrained(turned).state_dict(), snapshot / "pytorch_model.bin")
    images = make_images(1, 4)
    np.testing.assert_allclose(
        ClipScore().score(PROMPTS, images), by_hand(turned, PROMPTS, images), atol=3e-6
    )
    with pytest.raises(RewardError, match="CLIP model"):
        ClipScore(revision="other").score(PROMPTS, images)


def test_wrong_folders_are_refused_early(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"config\.json"):
        ClipScore.check_options(path=str(tmp_path))
    shutil.copy(clip_folder / "config.json", tmp_path)
    with pytest.raises(RewardError, match="pytorch_model"):
        ClipScore.check_options(path=str(tmp_path))
