"""PickScore against preprocessing by hand and the model's own logits."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.reward import check_scorer
from reward_service.scorers.pickscore import PickScore
from tests.reward_service.by_hand import PROMPTS, MakeImages, clip_cosines

TEMPERATURE = 98.0


@pytest.fixture(scope="module")
def processor(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and preprocessing alone, as in the repository that PickScore's authors take them from."""
    folder = tmp_path_factory.mktemp("processor")
    shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    return folder


@pytest.fixture(scope="module")
def model(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and configuration alone, with the temperature of trained CLIPs."""
    folder = tmp_path_factory.mktemp("pickscore")
    clip = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(TEMPERATURE))
    clip.save_pretrained(folder)
    return folder


def test_scores_are_the_models_own_logits(model: Path, processor: Path, make_images: MakeImages) -> None:
    images, prompts = make_images(0, 4), [*PROMPTS[:3], "a cat " * 30]
    scores = PickScore(path=str(model), processor=str(processor)).score(prompts, images)
    assert scores.dtype == np.float64
    wanted = TEMPERATURE * clip_cosines(model, prompts, images, tokens=processor)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    assert np.ptp(scores) > 0.5
    spec = RewardSpec(scorer="pickscore", options={"path": str(model), "processor": str(processor)})
    check_scorer(build_scorer(spec), PROMPTS, images)


def test_scale_divides(model: Path, processor: Path, make_images: MakeImages) -> None:
    plain = PickScore(path=str(model), processor=str(processor))
    divided = PickScore(path=str(model), processor=str(processor), scale=26)
    images = make_images(1, 4)
    np.testing.assert_allclose(divided.score(PROMPTS, images) * 26, plain.score(PROMPTS, images), rtol=1e-12)
    assert plain.digest != divided.digest


def test_digest_names_the_model_and_the_processor(model: Path, processor: Path, tmp_path: Path) -> None:
    digest = PickScore(path=str(model), processor=str(processor)).digest
    copy = tmp_path / "copy"
    shutil.copytree(processor, copy)
    assert PickScore(path=str(model), processor=str(copy)).digest == digest
    settings = copy / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"resample": 3', '"resample": 2'))
    assert PickScore(path=str(model), processor=str(copy)).digest != digest


def test_wrong_folders_are_refused_early(model: Path, processor: Path, tmp_path: Path) -> None:
    PickScore.check_options(path=str(model), processor=str(processor))
    with pytest.raises(RewardError, match=r"config\.json"):
        PickScore.check_options(path=str(processor))
    with pytest.raises(RewardError, match="tokenizer"):
        PickScore.check_options(path=str(model), processor=str(model))
    with pytest.raises(RewardError, match="processor"):
        PickScore.check_options(processor=str(tmp_path / "none"))
