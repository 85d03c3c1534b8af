"""The arithmetic of docs/scaling.md, against real arrays and models, and the document against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale_shapes import SD15_COST, SDXL_COST, count
from benchmarks.sd15_shape import TINY
from benchmarks.sizing import (
    ASSUMED,
    H100,
    MODELS,
    PAPER,
    Cluster,
    learning_seconds,
    picture_bytes,
    sampling_seconds,
    trajectory_bytes,
    weight_bytes,
)
from benchmarks.sizing_tables import tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_document_holds_what_the_functions_compute() -> None:
    text = DOCUMENT.read_text()
    for one in tables():
        assert one in text


@pytest.mark.parametrize("name", MODELS)
def test_bytes_are_those_of_the_arrays(name: str) -> None:
    model = MODELS[name]
    latents = np.empty((PAPER.images, PAPER.steps + 1, 4, model.latent, model.latent), dtype=np.float32)
    pixels = np.empty((PAPER.images, model.pixels, model.pixels, 3), dtype=np.uint8)
    assert trajectory_bytes(model, PAPER) == latents.nbytes
    assert picture_bytes(model, PAPER) == pixels.nbytes


def test_counts_of_a_miniature() -> None:
    from diffusers import UNet2DConditionModel

    found = count(TINY.unet, {})
    unet = UNet2DConditionModel(**TINY.unet)
    assert found.parameters == sum(value.numel() for value in unet.parameters())
    assert found.full_step == pytest.approx(3 * found.forward, rel=0.1)
    assert found.lora_step > 2 * found.forward
    unet.add_adapter(_adapter())
    added = sum(value.numel() for name, value in unet.named_parameters() if "lora_" in name)
    assert found.lora_parameters == added


def _adapter() -> object:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


@pytest.mark.parametrize("cost", [SD15_COST, SDXL_COST])
def test_recorded_counts_hang_together(cost: object) -> None:
    assert cost.full_step == pytest.approx(3 * cost.forward, rel=0.02)  # type: ignore[attr-defined]
    assert 2.0 < cost.lora_step / cost.forward < 2.3  # type: ignore[attr-defined]
    assert cost.lora_parameters < cost.parameters / 100  # type: ignore[attr-defined]


@settings(max_examples=60)
@given(st.sampled_from(sorted(MODELS)), st.booleans(), st.integers(3, 600))
def test_a_cluster_is_divided_without_a_gpu_too_many(name: str, full: bool, gpus: int) -> None:
    one = Cluster.divide(MODELS[name], PAPER, H100, full, gpus)
    whole = one.replicas // ASSUMED.replicas_a_gpu
    assert one.actors + one.ranks + whole == gpus
    assert min(one.actors, one.ranks, one.replicas) >= 1
    # Actors and ranks are busy alike, as far as whole GPUs allow.
    sample, learn = one.actors / one.sample_s, one.ranks / one.learn_s
    if gpus >= 64:
        assert 0.8 < sample / learn < 1.25


def test_an_epoch_by_hand() -> None:
    model = MODELS["SD 1.5"]
    one = Cluster(model, PAPER, H100, full=False, gpus=6, actors=2, ranks=4, replicas=1)
    sample, learn = sampling_seconds(model, PAPER, H100), learning_seconds(model, PAPER, H100, full=False)
    assert learn < 2 * sample
    assert one.epoch_s(16) == pytest.approx(8 * sample + learn + one.exchange_s)
    assert one.epoch_s(17) == pytest.approx(9 * sample + learn + one.exchange_s)
    alone = Cluster(model, PAPER, H100, full=False, gpus=8, actors=6, ranks=1, replicas=1)
    assert alone.epoch_s(12) == pytest.approx(sample + 12 * learn + alone.exchange_s)


def test_more_weights_take_longer_to_go_round() -> None:
    model = MODELS["SD 1.5"]
    few, all_of_them = (Cluster.divide(model, PAPER, H100, full, 64) for full in (False, True))
    assert few.exchange_s < 0.1 < all_of_them.exchange_s
    ratio = weight_bytes(model, full=True) / weight_bytes(model, full=False)
    assert all_of_them.exchange_s == pytest.approx(ratio * few.exchange_s)
