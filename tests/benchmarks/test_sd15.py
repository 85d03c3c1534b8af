"""The GPU benchmark's code on a miniature, and its refusal without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks import sd15
from benchmarks.sd15_shape import SD15


def test_the_miniature_runs(tmp_path: Path) -> None:
    arguments = ["--tiny", "--steps", "3", "--images", "2", "--micro-batch", "3", "--repeats", "1"]
    assert sd15.main([*arguments, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "sd15.json").read_text())
    share = float(content["figures"]["UNet's share of sampling"].rstrip("%"))
    assert 5 < share <= 100
    assert len(content["raw"]["learn_s"]) == 1


def test_the_unet_has_stable_diffusion_15s_parameters() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15.unet)
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964
