"""Fixtures that many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_config import make_config
from tests.tiny_pipeline import make_tiny_pipeline

__all__ = ["make_config"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests are small: more threads than cores, or two on tiny tensors, only cost time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random pipeline that predicts epsilon. Read only."""
    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "epsilon")


@pytest.fixture(scope="session")
def tiny_pipeline_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random pipeline that predicts v, as Stable Diffusion 2.x does. Read only."""
    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "v_prediction", "v_prediction", seed=1)
