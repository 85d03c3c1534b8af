"""Reward applications on a real Ray cluster and real Serve: deployed, changed, killed, swapped under load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.util.state import list_actors

from common.config.services import RewardServiceSection
from common.errors import RewardError, StuckError
from common.trajectory import ImageGroup, NoiseKey, PolicyStamp
from reward_service import deployment
from reward_service.app import embedded_app
from reward_service.handles import reward_handle
from reward_service.part import BusyError, Description, NoShadow, Reply, RewardFailure, RewardPart
from reward_service.service import build_service
from reward_service.settings import ServedReward

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SCORERS = "tests.reward_service.scorers"
LIMIT_S = 180.0  # starting a replica takes half a minute on a busy machine


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture(scope="module", autouse=True)
def dashboard() -> Iterator[str]:
    """A cluster whose processes find our packages; the address of its dashboard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.chdir(ROOT)
        context = ray.init(
            num_cpus=6,
            include_dashboard=True,
            dashboard_port=free_port(),
            log_to_driver=False,
            object_store_memory=200_000_000,
        )
        yield f"http://{context.dashboard_url}"
        serve.shutdown()
        ray.shutdown()


def images_of(prompt: str, count: int = 4) -> ImageGroup:
    """Pictures that depend on the prompt only."""
    generator = np.random.default_rng(sum(prompt.encode()))
    pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageGroup(prompt, NoiseKey(0, "train", 0, 0), PolicyStamp(0, "", "run"), pixels)


def ask(app: str, prompt: str) -> Reply:
    """The reply of an application about a prompt's pictures, which travel by reference."""
    response = reward_handle(app).score.remote(prompt, ray.put(images_of(prompt)))
    reply: Reply = response.result(timeout_s=LIMIT_S)
    return reply


def describe(app: str) -> Description:
    """Of one replica of an application."""
    description: Description = reward_handle(app).describe.remote().result(timeout_s=LIMIT_S)
    return description


def pids(app: str) -> set[int]:
    """Processes of an application's replicas that live."""
    states = list_actors(filters=[("state", "=", "ALIVE")], limit=200)
    return {actor.pid for actor in states if actor.class_name == f"ServeReplica:{app}:Reward"}


def wait_until(done: Callable[[], bool], what: str) -> None:
    """Fails where it does not come true in time."""
    end_at = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < end_at, f"in vain: {what}"
        time.sleep(0.2)


def assert_scored(reply: Reply, prompt: str, settings: ServedReward) -> None:
    """The reply is what the service says without Ray."""
    assert isinstance(reply.outcome, RewardPart), reply.outcome
    service = build_service(reply.outcome.stamp.name, settings)
    (wanted,) = service.score_groups([(prompt, images_of(prompt).pixels)])
    assert isinstance(wanted, RewardPart)
    np.testing.assert_allclose(reply.outcome.rewards, wanted.rewards, rtol=1e-6)
    np.testing.assert_allclose(reply.outcome.differences, wanted.differences, atol=1e-6)
    assert reply.outcome.stamp == wanted.stamp


@contextmanager
def running(owner: str = "run", limit_s: float = LIMIT_S, **apps: ServedReward) -> Iterator[None]:
    """Applications named after their rewards, ended afterwards."""
    section = RewardServiceSection(cpus=0.5)
    built = {name: embedded_app(name, owner, settings, section) for name, settings in apps.items()}
    started = deployment.deploy(built, owner, limit_s, stop_serve=False)
    try:
        yield
    finally:
        deployment.end(started)


class Load:
    """Clients that ask an application without pause, and what they saw."""

    def __init__(self, app: str, clients: int = 8) -> None:
        self._app = app
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[row]) for row in range(clients)]
        self.replies: list[tuple[str, Reply]] = []
        self.errors: list[str] = []
        self.waits: list[float] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S)

    def _ask(self, row: int) -> None:
        handle, number = reward_handle(self._app), 0
        while not self._stop.is_set():
            prompt, number = f"client {row} asks {number % 5}", number + 1
            started = time.monotonic()
            try:
                reply = handle.score.remote(prompt, ray.put(images_of(prompt))).result(timeout_s=LIMIT_S)
            except (RayActorError, RayTaskError, TimeoutError) as error:
                self.errors.append(repr(error))
            else:
                self.replies.append((prompt, reply))
                self.waits.append(time.monotonic() - started)


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

    def deploy(self) -> None:
        """`serve deploy`, and wait until all applications run."""
        self._path.write_text(yaml.safe_dump(self.content))
        command = [
            str(Path(sys.executable).parent / "serve"),
            "deploy",
            "-a",
            self._dashboard,
            str(self._path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr
        wait_until(self._runs, "all applications run")

    def _runs(self) -> bool:
        there = serve.status().applications
        states = [there[app["name"]].status for app in self.content["applications"] if app["name"] in there]
        assert "DEPLOY_FAILED" not in states, there
        return len(states) == len(self.content["applications"]) and set(states) == {"RUNNING"}


@pytest.fixture(scope="module")
def served(dashboard: str, tmp_path_factory: pytest.TempPathFactory) -> ServeFile:
    """The example file, on a free port."""
    content = yaml.safe_load((ROOT / "reward_service" / "serve.yaml").read_text())
    content["http_options"]["port"] = free_port()
    file = ServeFile(tmp_path_factory.mktemp("serve") / "serve.yaml", dashboard, content)
    file.deploy()
    return file


CLIP = ServedReward(scorer="clip", options={"path": "models/tiny-clip-proxy"})
SMALL = ServedReward(scorer="jpeg_compressibility")


def status_of(served: ServeFile, path: str) -> int:
    """Of an HTTP request."""
    address = f"http://127.0.0.1:{served.content['http_options']['port']}{path}"
    try:
        with urllib.request.urlopen(address, timeout=LIMIT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_example_file_serves_two_rewards_in_processes_of_their_own(served: ServeFile) -> None:
    assert_scored(ask("clip", "a cat"), "a cat", CLIP)
    assert_scored(ask("jpeg", "a cat"), "a cat", SMALL)
    assert pids("clip")
    assert pids("jpeg")
    assert not pids("clip") & pids("jpeg")
    assert describe("clip").ready
    assert status_of(served, "/clip/v1/ready") == 200
    assert status_of(served, "/jpeg/v1/ready") == 404


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
    digests = {reply.outcome.stamp for _, reply in load.replies if isinstance(reply.outcome, RewardPart)}
    assert len(digests) == 2
    for prompt, reply in load.replies:
        assert isinstance(reply.outcome, RewardPart)
        assert_scored(reply, prompt, flipped if reply.outcome.stamp.version == "1+b" else SMALL)
    assert {app: pids(app) for app in before} == before


def test_refused_settings_leave_the_old_scorer_and_say_why(served: ServeFile) -> None:
    good = {"scorer": "jpeg_compressibility", "version": "good"}
    served.reward("jpeg")["user_config"] = good
    served.deploy()
    wait_until(lambda: describe("jpeg").stamp.version == "1+good", "the good settings answer")
    served.reward("jpeg")["user_config"] = {"scorer": "jpeg_compresibility"}
    served.deploy()
    wait_until(lambda: "Did you mean 'jpeg_compressibility'" in describe("jpeg").refused, "refused")
    assert_scored(ask("jpeg", "a cat"), "a cat", ServedReward.model_validate(good))
    served.reward("jpeg")["user_config"] = good
    served.deploy()
    wait_until(lambda: describe("jpeg").refused == "", "rolled back")


def test_a_code_swap_loses_no_group_and_leaves_other_applications_alone(served: ServeFile) -> None:
    served.deploy()
    old, other = pids("clip"), pids("jpeg")
    with Load("clip", clients=4) as load:
        served.app("clip")["args"]["code_version"] = "2"
        served.deploy()
        wait_until(lambda: bool(pids("clip")) and not pids("clip") & old, "new replicas answer")
        time.sleep(0.5)
    assert load.errors == []
    for prompt, reply in load.replies[::10]:
        assert_scored(reply, prompt, CLIP)
    assert pids("jpeg") == other


def test_a_killed_replica_is_replaced(served: ServeFile) -> None:
    served.deploy()
    (victim,) = pids("jpeg")
    other = pids("clip")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: bool(pids("jpeg") - {victim}), "another replica")
    wait_until(lambda: serve.status().applications["jpeg"].status == "RUNNING", "the application runs")
    assert isinstance(ask("jpeg", "a cat").outcome, RewardPart)
    assert pids("clip") == other


def test_a_run_puts_its_rewards_up_side_by_side_and_ends_those_only(served: ServeFile) -> None:
    red, duel = ServedReward(scorer=f"{SCORERS}:Redness"), ServedReward(scorer=f"{SCORERS}:Duel", pairs=4)
    with running(**{"run-red": red, "run-duel": duel}):
        assert_scored(ask("run-red", "a cat"), "a cat", red)
        assert_scored(ask("run-duel", "a cat"), "a cat", duel)
        assert describe("run-duel").kind == "pairs"
        foreign = reward_handle("run-red").score.remote("a cat", ray.put(images_of("a dog")))
        reply = foreign.result(timeout_s=LIMIT_S)
        assert isinstance(reply.outcome, RewardFailure)
        assert "'a dog'" in reply.outcome.reason
        before = pids("run-red")
        with (
            pytest.raises(RewardError, match="this run did not start it"),
            running(owner="b", **{"run-red": red}),
        ):
            pass
        assert pids("run-red") == before
        with pytest.raises(RewardError, match="this run did not start it"), running(jpeg=SMALL):
            pass
        again = {"run-red": embedded_app("red", "run", red, RewardServiceSection(cpus=0.5))}
        deployment.deploy(again, "run", LIMIT_S, stop_serve=False)
        assert not pids("run-red") & before
    assert {name for name in serve.status().applications if name.startswith("run-")} == set()
    assert isinstance(ask("jpeg", "a cat").outcome, RewardPart)


def test_what_cannot_start_tells_why_and_leaves_nothing_of_its_run() -> None:
    red, bad = ServedReward(scorer=f"{SCORERS}:Redness"), ServedReward(scorer=f"{SCORERS}:Unbuildable")
    with pytest.raises(RewardError) as caught, running(good=red, bad=bad):
        pass
    assert "Reward 'bad'" in str(caught.value)
    assert "OSError('no such model on this machine')" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    section = RewardServiceSection(cpus=64.0)
    with pytest.raises(StuckError, match=r"not ready after 2 s.*CPUs"):
        deployment.deploy({"huge": embedded_app("huge", "run", red, section)}, "run", 2.0, stop_serve=False)
    assert not {"good", "bad", "huge"} & set(serve.status().applications)


def test_a_shadow_is_heard_and_never_harms() -> None:
    mine = ServedReward(scorer=f"{SCORERS}:Redness", shadow_app="next", shadow_wait_s=0.5)
    # Two that shadow each other must not ask for ever.
    other = ServedReward(scorer=f"{SCORERS}:Moody", shadow_app="mine", timeout_s=60.0)
    lost = ServedReward(scorer=f"{SCORERS}:Redness", shadow_app="nobody")
    with running(mine=mine, next=other, lost=lost):
        reply = ask("mine", "a cat")
        assert isinstance(reply.outcome, RewardPart)
        assert isinstance(reply.shadow, RewardPart)
        assert (reply.outcome.stamp.name, reply.shadow.stamp.name) == ("mine", "next")
        np.testing.assert_allclose(reply.shadow.rewards, reply.outcome.rewards)
        started = time.monotonic()
        reply = ask("mine", "hang now")
        assert time.monotonic() - started < 5.0
        assert isinstance(reply.outcome, RewardPart)
        assert isinstance(reply.shadow, RewardFailure)
        assert "No answer 0.5 s after" in reply.shadow.reason
        assert isinstance(ask("mine", "a cat").outcome, RewardPart)
        reply = ask("lost", "a cat")
        assert isinstance(reply.outcome, RewardPart)
        assert isinstance(reply.shadow, RewardFailure)
        assert "'nobody'" in reply.shadow.reason


def test_a_hanging_scorer_ends_its_replica_in_time_and_another_comes(tmp_path: Path) -> None:
    options: dict[str, str | int | float | bool] = {"folder": str(tmp_path)}
    moody = ServedReward(
        scorer=f"{SCORERS}:Moody", options=options, timeout_s=2.0, max_batch_groups=1, queue_groups=1
    )
    with running(moody=moody):
        (before,) = pids("moody")
        napping = [
            reward_handle("moody").score.remote("nap now", ray.put(images_of("nap now"))) for _ in range(2)
        ]
        time.sleep(0.5)
        with pytest.raises(RayTaskError) as caught:
            ask("moody", "a cat")
        assert isinstance(caught.value.cause, BusyError)
        assert 0.0 < caught.value.cause.retry_after_s <= 30.0
        for response in napping:
            assert isinstance(response.result(timeout_s=LIMIT_S).outcome, RewardPart)
        started = time.monotonic()
        with pytest.raises(RayActorError):
            ask("moody", "hang now")
        assert time.monotonic() - started < 10.0
        wait_until(lambda: bool(pids("moody") - {before}), "another replica")
        reply = ask("moody", "a cat")
        assert isinstance(reply.outcome, RewardPart)
        assert isinstance(reply.shadow, NoShadow)
