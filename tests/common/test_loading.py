"""From the configuration to a policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.errors import ModelError
from common.loading import choose_device, load_policy
from tests.tiny_config import make_config


def test_the_sampling_section_makes_the_step_distribution(tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = {"sampling": {"steps": 5, "eta": 0.5, "stochastic_steps": (0, 2), "guidance_scale": 2.5}}
    policy, distribution = load_policy(make_config(tiny_pipeline, tmp_path, settings))
    _, whole = load_policy(make_config(tiny_pipeline, tmp_path, {"sampling": {"steps": 5, "eta": 1.0}}))
    assert policy.guided.guidance_scale == 2.5
    assert distribution.stochastic_steps == (0, 2)
    assert whole.stochastic_steps == (0, 1, 2, 3)
    assert torch.equal(distribution.timesteps, whole.timesteps)
    torch.testing.assert_close(distribution.std[[0, 2]], 0.5 * whole.std[[0, 2]])
    assert not distribution.std[[1, 3, 4]].any()


@pytest.mark.parametrize(("precision", "autocast"), [("float32", False), ("bfloat16", True)])
def test_precision_is_the_forward_passes(
    tiny_pipeline: Path, tmp_path: Path, precision: str, autocast: bool
) -> None:
    policy, _ = load_policy(make_config(tiny_pipeline, tmp_path, {"model.precision": precision}))
    assert policy.guided.autocast is autocast
    assert all(value.dtype == torch.float32 for value in policy.trainable.parameters().values())


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json is missing"):
        load_policy(make_config(tmp_path, tmp_path))


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
