"""Numbers that latents are scaled by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import ModelError
from common.model.options import check_latent_numbers

VAE: dict[str, Any] = {
    "latent_channels": 2,
    "scaling_factor": 0.2,
    "shift_factor": None,
    "latents_mean": [0.0, 1],
    "latents_std": (1.0, 2.0),
    "batch_norm_eps": 1e-4,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift_factor", "0.1"),
        ("latents_mean", [0.0]),
        ("latents_mean", [0.0, None]),
        ("latents_std", 1.0),
        ("latents_std", [1.0, float("inf")]),
        ("batch_norm_eps", None),
    ],
)
def test_what_is_no_number_is_refused_by_its_name(name: str, value: object) -> None:
    check_latent_numbers(Path("config.json"), VAE)
    with pytest.raises(ModelError, match=rf"config\.json: {name}"):
        check_latent_numbers(Path("config.json"), {**VAE, name: value})
