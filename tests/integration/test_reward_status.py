"""`python -m reward_service status` on a real cluster."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray
from ray import serve

from common.config.services import RewardServiceSection
from reward_service.__main__ import main
from reward_service.app import embedded_app
from reward_service.settings import ServedReward
from tests.integration.reward_apps import ROOT, cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_status_lists_the_applications_of_the_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    with cluster():
        assert main(["status"]) == 0
        assert "No reward application runs" in capsys.readouterr().out
        settings = ServedReward(scorer="jpeg_compressibility", version="v3")
        app = embedded_app("small", "", settings, RewardServiceSection())
        serve.run(app, name="small-files", route_prefix=None)
        from_outside = subprocess.run(
            [sys.executable, "-m", "reward_service", "status"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        )
    (row,) = [line.split() for line in from_outside.stdout.splitlines() if line.startswith("small-files")]
    assert row[1:5] == ["small", "pointwise", "jpeg_compressibility", "1+v3"]
    assert row[6] == "yes"
