"""What Ray is asked for a process."""

from __future__ import annotations

from common.cluster.process_options import process_options
from common.config.services import PlacementSection


def test_a_process_without_a_gpu_sees_none_and_one_with_a_share_what_ray_gives_it() -> None:
    variables = {
        gpus: process_options(PlacementSection(gpus=gpus))["runtime_env"]["env_vars"] for gpus in (0.0, 0.4)
    }
    assert variables[0.0]["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in variables[0.4]
