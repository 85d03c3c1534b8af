"""Places for groups, and some to spare, at the replicas of every application."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from common.config.services import RewardServiceSection
from reward_service.contract.settings import ServedReward
from reward_service.on_ray.app import (
    ONGOING_GROUPS,
    SPARE_REQUESTS,
    embedded_app,
    groups_at_a_replica,
    in_job,
    served_app,
)

SERVE_FILE = Path(__file__).parents[3] / "reward_service" / "serve.yaml"


def test_a_run_cannot_fill_all_places_of_a_replica() -> None:
    settings = ServedReward(scorer="jpeg_compressibility", max_batch_groups=8)
    embedded: Any = embedded_app("red", "run", settings, RewardServiceSection())._bound_deployment
    assert embedded.max_ongoing_requests == groups_at_a_replica(settings) + SPARE_REQUESTS
    served: Any = served_app("red")._bound_deployment
    assert served.max_ongoing_requests == ONGOING_GROUPS + SPARE_REQUESTS
    first = yaml.safe_load(SERVE_FILE.read_text())["applications"][0]["deployments"][0]
    assert first["max_ongoing_requests"] == ONGOING_GROUPS + SPARE_REQUESTS


def test_a_replica_has_the_jobs_environment_beside_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {
        "working_dir": "gcs://x.zip",
        "pip": ["judge"],
        "env_vars": {"HF_TOKEN": "t", "OMP_NUM_THREADS": "9"},
    }
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(runtime_env=job))
    own = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    assert in_job(own) == {"pip": ["judge"], "env_vars": {"HF_TOKEN": "t", "OMP_NUM_THREADS": "1"}}
    assert own == {"env_vars": {"OMP_NUM_THREADS": "1"}}
