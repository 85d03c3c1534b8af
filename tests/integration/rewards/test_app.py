"""`serve deploy` of the example file, `status`, live settings, refusals, a code swap."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import ray
import yaml
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.job_submission import JobSubmissionClient

from common.trajectory import RewardScores
from reward_service.__main__ import main
from reward_service.contract.settings import ServedReward
from tests.integration.rewards.apps import (
    LIMIT_S,
    ROOT,
    Cluster,
    Load,
    ask,
    assert_scored,
    describe,
    pids,
    wait_until,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class ServeFile:
    """A Serve file and its deployment by the command line."""

    def __init__(self, path: Path, dashboard: str, content: dict[str, Any]) -> None:
        self._path = path
        self._dashboard = dashboard
        self.content = content

    def app(self, name: str) -> dict[str, Any]:
        """One application in the file."""
        (app,) = (app for app in self.content["applications"] if app["name"] == name)
        return dict(app)

    def reward(self, name: str) -> dict[str, Any]:
        """Its deployment that scores."""
        deployments: list[dict[str, Any]] = self.app(name)["deployments"]
        return deployments[0]

    def deploy_by_command(self) -> None:
        """`serve deploy`, and wait until all applications run."""
        self._path.write_text(yaml.safe_dump(self.content))
        command = [str(Path(sys.executable).parent / "serve"), "deploy", "-a", self._dashboard]
        done = subprocess.run(
            [*command, str(self._path)], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stderr
        wait_until(self._runs, "all applications run")

    def deploy(self) -> None:
        """The request that `serve deploy` sends, without its process, and the same wait."""
        ServeSubmissionClient(self._dashboard).deploy_applications(self.content)
        wait_until(self._runs, "all applications run")

    def _runs(self) -> bool:
        there = serve.status().applications
        states = [there[app["name"]].status for app in self.content["applications"] if app["name"] in there]
        assert "DEPLOY_FAILED" not in states, there
        return len(states) == len(self.content["applications"]) and set(states) == {"RUNNING"}


@pytest.fixture(scope="module")
def served(shared: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ServeFile:
    """The example file, on a free port."""
    content = yaml.safe_load((ROOT / "reward_service" / "serve.yaml").read_text())
    content["http_options"]["port"] = shared.http_port
    file = ServeFile(tmp_path_factory.mktemp("serve") / "serve.yaml", shared.dashboard, content)
    file.deploy_by_command()
    return file


CLIP = ServedReward(scorer="clip", options={"path": "models/tiny-clip-proxy"})
SMALL = ServedReward(scorer="jpeg_compressibility")


def status_of(served: ServeFile, path: str) -> int:
    """Of an HTTP request."""
    address = f"http://127.0.0.1:{served.content['http_options']['port']}{path}"
    return httpx2.get(address, timeout=LIMIT_S).status_code


def test_a_cluster_without_rewards_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "No reward application runs" in capsys.readouterr().out


def test_the_example_file_serves_two_rewards_in_processes_of_their_own(served: ServeFile) -> None:
    assert_scored(ask("clip", "a cat"), "a cat", CLIP)
    assert_scored(ask("jpeg", "a cat"), "a cat", SMALL)
    assert pids("clip")
    assert pids("jpeg")
    assert not pids("clip") & pids("jpeg")
    assert describe("clip").ready
    assert status_of(served, "/clip/v1/ready") == 200
    assert status_of(served, "/jpeg/v1/ready") == 404


def test_status_lists_them_from_another_process_whatever_mode_serve_is_in(
    served: ServeFile, shared: Cluster
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reward_service", "status"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
        # The mode makes Serve's usual handles useless to a thread without an event loop.
        env=os.environ
        | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    )
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["jpeg"][1:7] == ["RUNNING", "1/1", "jpeg", "pointwise", "jpeg_compressibility", "1"]
    assert rows["jpeg"][8] == rows["clip"][8] == "yes"
    assert "INFO" not in done.stdout + done.stderr
    # This test's own is the only one listed.
    assert len(JobSubmissionClient(shared.dashboard).list_jobs()) == 1


def test_settings_change_live_under_load_and_nothing_is_lost_or_mixed(served: ServeFile) -> None:
    served.deploy()
    before = {app: pids(app) for app in ("clip", "jpeg")}
    flipped = ServedReward(scorer="jpeg_incompressibility", version="b")
    with Load("jpeg") as load:
        time.sleep(0.5)
        served.reward("jpeg")["user_config"] = {"scorer": flipped.scorer, "version": "b"}
        served.deploy()
        wait_until(lambda: describe("jpeg").stamp.version == "1+b", "the new settings answer")
        time.sleep(0.5)
    assert load.errors == []
    digests = {reply.outcome.stamp for _, reply in load.replies if isinstance(reply.outcome, RewardScores)}
    assert len(digests) == 2
    for prompt, reply in load.replies:
        assert isinstance(reply.outcome, RewardScores)
        assert_scored(reply, prompt, flipped if reply.outcome.stamp.version == "1+b" else SMALL)
    assert {app: pids(app) for app in before} == before


def test_refused_settings_leave_the_old_scorer_and_say_why(
    served: ServeFile, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"scorer": "jpeg_compressibility", "version": "good"}
    served.reward("jpeg")["user_config"] = good
    served.deploy()
    wait_until(lambda: describe("jpeg").stamp.version == "1+good", "the good settings answer")
    served.reward("jpeg")["user_config"] = {"scorer": "jpeg_compresibility"}
    served.deploy()
    wait_until(lambda: "Did you mean 'jpeg_compressibility'" in describe("jpeg").refused, "refused")
    assert_scored(ask("jpeg", "a cat"), "a cat", ServedReward.model_validate(good))
    assert "Did you mean 'jpeg_compressibility'" in ask("jpeg", "a cat").refused
    assert main(["status"]) == 1
    assert re.search(r"\njpeg: .* refused: .*Did you mean", capsys.readouterr().out)
    served.reward("jpeg")["user_config"] = good
    served.deploy()
    wait_until(lambda: describe("jpeg").refused == "", "rolled back")


@pytest.mark.slow
def test_a_code_swap_loses_no_group_and_leaves_other_applications_alone(served: ServeFile) -> None:
    served.reward("jpeg")["user_config"] = {"scorer": SMALL.scorer}
    served.deploy()
    wait_until(lambda: describe("jpeg").stamp.version == "1", "the first settings answer")
    old, other = pids("jpeg"), pids("clip")
    with Load("jpeg", clients=2) as load:
        served.app("jpeg")["args"]["code_version"] = "2"
        served.deploy()
        wait_until(lambda: bool(pids("jpeg")) and not pids("jpeg") & old, "new replicas answer")
        time.sleep(0.5)
    assert load.errors == []
    for prompt, reply in load.replies[::10]:
        assert_scored(reply, prompt, SMALL)
    assert pids("clip") == other
