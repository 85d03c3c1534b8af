"""Peaks of a learner, by the probe itself and by its process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.memory import TENSORS, Growth, Setting, probe_in_process, verdict_of_growth
from benchmarks.memory_probe import ActivationMeter, Peak, probe
from tests.tiny_config import make_config


def _growth(small: int, large: int) -> Growth:
    one, other = Peak(loaded=100, growth=small, activations=7), Peak(loaded=100, growth=large, activations=7)
    return Growth(TENSORS, Setting(10, 8), Setting(50, 8), (one, one, one), (other, other, other))


@pytest.mark.parametrize(("large", "met"), [(103, True), (106, False)])
def test_growth_of_five_percent_is_too_much(large: int, met: bool) -> None:
    verdict = verdict_of_growth(_growth(100, large))
    assert verdict.met is met
    assert verdict.value == f"+{large - 100}.0%"
    assert _growth(100, large).of("loaded", "growth") == pytest.approx((large - 100) / 200)


def test_meter_counts_each_storage_once_and_forgets_what_is_freed() -> None:
    weight = torch.ones(10, requires_grad=True)
    meter = ActivationMeter([weight])
    with meter.hooks():
        for _ in range(3):
            middle = weight * 2.0
            # exp keeps its result, of 40 bytes; square keeps the same tensor again.
            middle.exp().square().sum().backward()
    assert meter.peak == 40


def test_activations_do_not_grow_with_steps_or_images(tiny_pipeline: Path, tmp_path: Path) -> None:
    peaks = [
        probe(
            make_config(
                tiny_pipeline,
                tmp_path,
                {"sampling.steps": steps, "sampling.images_per_prompt": images, "policy": {"kind": "full"}},
            ),
            groups=2,
            count_activations=True,
        )
        for steps, images in ((5, 4), (9, 4), (5, 8))
    ]
    assert peaks[0].activations > 100_000
    assert peaks[0].activations == peaks[1].activations == peaks[2].activations


def test_a_process_of_its_own_measures_a_peak(tiny_pipeline: Path, tmp_path: Path) -> None:
    peak = probe_in_process(make_config(tiny_pipeline, tmp_path), Setting(4, 4), TENSORS)
    assert peak.loaded > peak.growth > 0
