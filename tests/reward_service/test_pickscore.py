"""PickScore against preprocessing by hand and the model's own logits."""

from __future__ import annotations

import math
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
from reward_service.scorers.pickscore import PickScore
from tests.reward_service.by_hand import cropped

PROMPTS = ["a red cat", "two blue dogs near a tree", "a red cat", "sun"]
WEIGHTS = ("model.safetensors", "config.json")
MakeImages = Callable[[int, int], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def processor(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and preprocessing alone, as in the repository that PickScore's authors take them from."""
    folder = tmp_path_factory.mktemp("processor")
    shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    for name in WEIGHTS:
        (folder / name).unlink()
    return folder


@pytest.fixture(scope="module")
def model(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and configuration alone, with the temperature of trained CLIPs."""
    folder = tmp_path_factory.mktemp("pickscore")
    clip = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(98.0))
    clip.save_pretrained(folder)
    return folder


def logits_by_hand(
    model: Path, processor: Path, prompts: list[str], images: NDArray[np.uint8]
) -> list[float]:
    """One image and prompt at a time, by the model's whole forward pass, which applies the temperature."""
    clip = CLIPModel.from_pretrained(model).eval()
    tokenizer = CLIPTokenizer.from_pretrained(processor)
    logits = []
    for prompt, image in zip(prompts, images, strict=True):
        tokens = torch.tensor([tokenizer(prompt, truncation=True, max_length=40)["input_ids"]])
        with torch.no_grad():
            logits.append(float(clip(input_ids=tokens, pixel_values=cropped(image, 32)).logits_per_text))
    return logits


def test_scores_are_the_models_own_logits(model: Path, processor: Path, make_images: MakeImages) -> None:
    images = make_images(0, 4)
    scores = PickScore(path=str(model), processor=str(processor)).score(PROMPTS, images)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, logits_by_hand(model, processor, PROMPTS, images), atol=1e-4)
    assert 0.5 < np.abs(scores).max() < 98.0
    assert np.ptp(scores) > 0.5


def test_scale_divides(model: Path, processor: Path, make_images: MakeImages) -> None:
    plain = PickScore(path=str(model), processor=str(processor))
    divided = PickScore(path=str(model), processor=str(processor), scale=26)
    images = make_images(1, 4)
    np.testing.assert_allclose(divided.score(PROMPTS, images) * 26, plain.score(PROMPTS, images), rtol=1e-12)
    assert plain.digest != divided.digest


def test_a_long_prompt_is_cut_keeping_its_end_token(
    model: Path, processor: Path, make_images: MakeImages
) -> None:
    images, prompts = make_images(2, 2)[:1].repeat(2, axis=0), ["a cat " * 30, "a cat " * 30 + "more"]
    scores = PickScore(path=str(model), processor=str(processor)).score(prompts, images)
    np.testing.assert_allclose(scores, logits_by_hand(model, processor, prompts, images), atol=1e-4)
    assert scores[0] == scores[1]


def test_many_images_score_as_each_alone(model: Path, processor: Path, make_images: MakeImages) -> None:
    spec = RewardSpec(scorer="pickscore", options={"path": str(model), "processor": str(processor)})
    check_scorer(build_scorer(spec), PROMPTS, make_images(2, 4))


def test_one_folder_may_hold_everything(
    clip_folder: Path, model: Path, make_images: MakeImages, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(clip_folder, whole)
    shutil.copytree(model, whole, dirs_exist_ok=True)
    split = PickScore(path=str(model), processor=str(clip_folder)).score(PROMPTS, make_images(3, 4))
    np.testing.assert_array_equal(
        PickScore(path=str(whole), processor=str(whole)).score(PROMPTS, make_images(3, 4)), split
    )


def test_digest_names_the_model_and_the_processor(model: Path, processor: Path, tmp_path: Path) -> None:
    digest = PickScore(path=str(model), processor=str(processor)).digest
    copy = tmp_path / "copy"
    shutil.copytree(processor, copy)
    assert PickScore(path=str(model), processor=str(copy)).digest == digest
    settings = copy / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"resample": 3', '"resample": 2'))
    assert PickScore(path=str(model), processor=str(copy)).digest != digest


def test_wrong_folders_are_refused_early(model: Path, processor: Path, tmp_path: Path) -> None:
    PickScore.check_options()
    PickScore.check_options(path=str(model), processor=str(processor))
    with pytest.raises(RewardError, match=r"no config.json"):
        PickScore.check_options(path=str(processor))
    with pytest.raises(RewardError, match="no tokenizer"):
        PickScore.check_options(path=str(model), processor=str(model))
    with pytest.raises(RewardError, match=r"pickscore option processor is .*neither a folder nor a hub id"):
        PickScore.check_options(processor=str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RewardError, match="pickle files"):
        PickScore.check_options(path=str(tmp_path))
