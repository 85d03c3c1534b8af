"""The aesthetic predictor against preprocessing and head by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import CLIPModel

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer
from reward_service.contract.reward import check_scorer
from reward_service.scorers.aesthetic import AestheticScorer
from tests.reward_service.by_hand import BLACK, PROMPTS, MakeImages, Tensors, cropped, head

SIZES = (16, 12, 8, 8, 4, 1)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    """A head for embeddings of 16 numbers, as torch.nn.Sequential of linear layers and dropout names them."""
    generator = torch.Generator().manual_seed(2)
    made = {}
    for number, wide, out in zip((0, 2, 4, 6, 7), SIZES, SIZES[1:], strict=False):
        made[f"layers.{number}.weight"] = torch.randn(out, wide, generator=generator)
        made[f"layers.{number}.bias"] = torch.randn(out, generator=generator)
    return made


@pytest.fixture
def file(tensors: Tensors, tmp_path: Path) -> Path:
    """The head as its author publishes it."""
    torch.save(tensors, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    return tmp_path / "sac+logos+ava1-l14-linearMSE.pth"


def by_hand(folder: Path, tensors: Tensors, images: NDArray[np.uint8]) -> list[float]:
    model = CLIPModel.from_pretrained(folder).eval()
    numbers = []
    for image in images:
        with torch.no_grad():
            pooled = model.vision_model(pixel_values=cropped(image, 32)).pooler_output[0]
        embedding = (model.visual_projection.weight.detach() @ pooled).double().numpy()
        numbers.append(head(tensors, "layers", embedding / np.linalg.norm(embedding)))
    return numbers


@pytest.mark.parametrize("size", [(48, 48), (40, 72), (75, 41)])
def test_scores_are_those_by_hand_whatever_the_prompt(
    clip_folder: Path, file: Path, tensors: Tensors, size: tuple[int, int]
) -> None:
    images = np.random.default_rng(3).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    scorer = AestheticScorer(path=str(clip_folder), head=str(file))
    scores = scorer.score(PROMPTS, images)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, by_hand(clip_folder, tensors, images), atol=1e-4)
    np.testing.assert_array_equal(scores, scorer.score([""] * 4, images))
    assert np.ptp(scores) > 0.01


def test_many_images_score_as_each_alone(clip_folder: Path, file: Path, make_images: MakeImages) -> None:
    spec = RewardSpec(scorer="aesthetic", options={"path": str(clip_folder), "head": str(file)})
    check_scorer(build_scorer(spec), PROMPTS, make_images(2, 4))


def test_safetensors_and_the_default_head_in_the_hubs_cache_give_the_same(
    clip_folder: Path,
    file: Path,
    tensors: Tensors,
    make_images: MakeImages,
    tmp_path: Path,
    hub_cache: Callable[[str], Path],
) -> None:
    cached = hub_cache("trl-lib/ddpo-aesthetic-predictor") / "aesthetic-model.pth"
    cached.write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "head.safetensors")
    pickled = AestheticScorer(path=str(clip_folder), head=str(file))
    safe = AestheticScorer(path=str(clip_folder), head=str(tmp_path / "head.safetensors"))
    for other in (safe, AestheticScorer(path=str(clip_folder))):
        np.testing.assert_array_equal(
            pickled.score(PROMPTS, make_images(1, 4)), other.score(PROMPTS, make_images(1, 4))
        )
    assert pickled.digest != safe.digest
    absent = AestheticScorer(path=str(clip_folder), head="nobody/nothing/head.pth")
    with pytest.raises(RewardError, match="nobody/nothing"):
        absent.score(["a"], BLACK)


@pytest.mark.parametrize("head", ["none.pth", "trl-lib/ddpo-aesthetic-predictor", "models/heads/head.pth"])
def test_a_mistyped_head_is_refused_early_and_not_taken_for_one_on_the_hub(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "heads").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match="head"):
        AestheticScorer.check_options(head=head)


def _with_relu(tensors: Tensors) -> Tensors:
    """As ava+logos-l14-reluMSE.pth: activations between the layers move the names."""
    moved = dict(zip((0, 2, 4, 6, 7), (0, 3, 6, 9, 11), strict=True))
    return {f"layers.{moved[int(name.split('.')[1])]}.{name.split('.')[2]}": v for name, v in tensors.items()}


TWO = {"layers.7.weight": torch.zeros(2, 4), "layers.7.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_with_relu, "without activations"),
        (lambda tensors: {**tensors, "layers.0.weight": torch.zeros(12, 768)}, "16 numbers"),
        (lambda tensors: {**tensors, "layers.4.bias": torch.zeros(3)}, "layers.4"),
        (lambda tensors: {**tensors, **TWO}, "2 numbers"),
    ],
)
def test_another_head_is_refused(
    clip_folder: Path, file: Path, tensors: Tensors, change: Callable[[Tensors], Tensors], reason: str
) -> None:
    torch.save(change(tensors), file)
    with pytest.raises(RewardError, match=reason):
        AestheticScorer(path=str(clip_folder), head=str(file)).score(["a"], BLACK)
