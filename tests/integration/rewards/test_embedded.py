"""Applications that a run starts for itself: side by side, owned, shadowed, ended by a scorer that hangs."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve
from ray.exceptions import RayActorError

from common.config.services import RewardServiceSection
from common.errors import RewardError
from common.trajectory import RewardScores
from reward_service.contract.results import RewardFailure
from reward_service.contract.settings import ServedReward
from reward_service.on_ray import deployment
from reward_service.on_ray.app import embedded_app, groups_at_a_replica
from reward_service.on_ray.handles import reward_handle
from tests.integration.rewards.apps import (
    LIMIT_S,
    Cluster,
    ask,
    assert_scored,
    describe,
    images_of,
    pids,
    wait_until,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SCORERS = "tests.reward_service.scorers"


@contextmanager
def running(apps: dict[str, ServedReward], owner: str = "run", replicas: int = 1) -> Iterator[None]:
    """Applications named after their rewards, ended afterwards."""
    section = RewardServiceSection(cpus=0.5, replicas=replicas)
    built = {name: embedded_app(name, owner, settings, section) for name, settings in apps.items()}
    started = deployment.deploy(built, owner, LIMIT_S, stop_serve=False)
    try:
        yield
    finally:
        deployment.end(started)


@pytest.mark.slow
def test_a_run_puts_its_rewards_up_side_by_side_and_ends_those_only() -> None:
    red, duel = ServedReward(scorer=f"{SCORERS}:Redness"), ServedReward(scorer=f"{SCORERS}:Duel", pairs=4)
    with running({"other": red}, "somebody"), running({"run-red": red, "run-duel": duel}):
        others = pids("other")
        assert_scored(ask("run-red", "a cat"), "a cat", red)
        assert_scored(ask("run-duel", "a cat"), "a cat", duel)
        assert describe("run-duel").kind == "pairs"
        before = pids("run-red")
        with (
            pytest.raises(RewardError, match="this run did not start it"),
            running({"run-red": red}, "b"),
        ):
            pass
        assert pids("run-red") == before
        with pytest.raises(RewardError, match="this run did not start it"), running({"run-red": red}, ""):
            pass
        again = {"run-red": embedded_app("red", "run", red, RewardServiceSection(cpus=0.5))}
        deployment.deploy(again, "run", LIMIT_S, stop_serve=False)
        assert not pids("run-red") & before
        deployment.end(deployment.Deployment(("run-red", "run-duel"), stop_serve=False))
        assert set(serve.status().applications) == {"other"}
        assert pids("other") == others


@pytest.mark.slow
def test_what_cannot_start_tells_why_and_leaves_nothing_of_its_run() -> None:
    red, bad = ServedReward(scorer=f"{SCORERS}:Redness"), ServedReward(scorer=f"{SCORERS}:Unbuildable")
    with pytest.raises(RewardError) as caught, running({"good": red, "bad": bad}):
        pass
    assert "Reward 'bad'" in str(caught.value)
    assert "OSError('no such model on this machine')" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not {"good", "bad"} & set(serve.status().applications)


@pytest.mark.slow
def test_a_shadow_is_heard_and_never_harms() -> None:
    mine = ServedReward(scorer=f"{SCORERS}:Redness", shadow_app="next", shadow_wait_s=0.5)
    # Two that shadow each other must not ask for ever.
    other = ServedReward(scorer=f"{SCORERS}:Moody", shadow_app="mine", timeout_s=60.0)
    lost = ServedReward(scorer=f"{SCORERS}:Redness", shadow_app="nobody")
    with running({"mine": mine, "next": other, "lost": lost}):
        reply = ask("mine", "a cat")
        assert isinstance(reply.outcome, RewardScores)
        assert isinstance(reply.shadow, RewardScores)
        assert (reply.outcome.stamp.name, reply.shadow.stamp.name) == ("mine", "next")
        np.testing.assert_allclose(reply.shadow.rewards, reply.outcome.rewards)
        started = time.monotonic()
        reply = ask("mine", "hang now")
        assert time.monotonic() - started < 5.0
        assert isinstance(reply.outcome, RewardScores)
        assert isinstance(reply.shadow, RewardFailure)
        assert "No answer 0.5 s after" in reply.shadow.reason
        assert isinstance(ask("mine", "a cat").outcome, RewardScores)
        reply = ask("lost", "a cat")
        assert isinstance(reply.outcome, RewardScores)
        assert isinstance(reply.shadow, RewardFailure)
        assert "'nobody'" in reply.shadow.reason


@pytest.mark.slow
def test_a_replica_full_of_groups_still_says_what_it_is_and_who_started_it() -> None:
    settings = ServedReward(scorer=f"{SCORERS}:Moody")
    with running({"full": settings}):
        naps = ray.put(images_of("nap now", 24))  # six seconds
        handle = reward_handle("full")
        sent = [handle.score.remote("nap now", naps) for _ in range(groups_at_a_replica(settings))]
        time.sleep(0.5)
        other = reward_handle("full")
        assert other.owner.remote().result(timeout_s=4.0) == "run"
        assert other.describe.remote().result(timeout_s=4.0).ready
        for response in sent:
            assert isinstance(response.result(timeout_s=LIMIT_S).outcome, RewardScores)


@pytest.mark.slow
def test_groups_are_shared_out_evenly_among_replicas() -> None:
    settings = ServedReward(scorer=f"{SCORERS}:ProcessId")
    with running({"two": settings}, replicas=2):
        handle, images = reward_handle("two"), ray.put(images_of("slow"))
        window, groups = 2 * groups_at_a_replica(settings), 40
        answered: Counter[float] = Counter()
        sent: deque[Any] = deque()
        for number in range(groups + window):
            if number >= window:
                outcome = sent.popleft().result(timeout_s=LIMIT_S).outcome
                assert isinstance(outcome, RewardScores)
                answered[outcome.rewards[0]] += 1
            if number < groups:
                sent.append(handle.score.remote("slow", images))
    assert len(answered) == 2
    assert min(answered.values()) >= 0.4 * groups


@pytest.fixture(scope="module")
def moody() -> Iterator[str]:
    """One replica of a scorer whose failures are asked for in the prompt: two groups in work, one waits."""
    settings = ServedReward(scorer=f"{SCORERS}:Moody", timeout_s=2.0, max_batch_groups=2, queue_groups=1)
    with running({"moody": settings}):
        yield "moody"


def series(reward: str) -> dict[str, float]:
    """What Prometheus reads of a reward, by metric."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT_S) as answer:
        text = answer.read().decode()
    found = re.findall(r"^ray_(prdp_reward_\w+)\{(.*)\} (\S+)$", text, flags=re.MULTILINE)
    return {name: float(value) for name, labels, value in found if f'reward="{reward}"' in labels}


def test_counts_reach_prometheus(moody: str) -> None:
    for prompt in ("a cat", "a dog", "raise now"):
        ask(moody, prompt)
    wanted = {
        "prdp_reward_scored_groups_total": 2.0,
        "prdp_reward_failed_groups_total": 1.0,
        "prdp_reward_seconds_count": 3.0,
        "prdp_reward_batch_groups_count": 3.0,
        "prdp_reward_batch_seconds_count": 3.0,
        "prdp_reward_queue_groups": 0.0,
    }
    seen: dict[str, float] = {}

    def all_seen() -> bool:
        time.sleep(0.5)
        seen.update(series(moody))  # Ray tells a gauge once each time that it is set
        return seen.items() >= wanted.items()

    wait_until(all_seen, "the counts of three groups")


@pytest.mark.slow
def test_a_hanging_scorer_ends_its_replica_in_time_and_another_comes(moody: str) -> None:
    (before,) = pids(moody)
    started = time.monotonic()
    with pytest.raises(RayActorError):
        ask(moody, "hang now")
    assert time.monotonic() - started < 10.0
    wait_until(lambda: bool(pids(moody) - {before}), "another replica")
    reply = ask(moody, "a cat")
    assert isinstance(reply.outcome, RewardScores)
    assert reply.shadow is None


@pytest.mark.slow
def test_what_a_scorer_prints_stands_in_the_output_of_its_process(shared: Cluster) -> None:
    with running({"talks": ServedReward(scorer=f"{SCORERS}:Talkative")}):
        ask("talks", "an echo of this test")
        logs, line = shared.logs, "asked about an echo of this test"
        wait_until(
            lambda: any(line in log.read_text(errors="replace") for log in logs.glob("worker-*.out")),
            "the line in a log",
        )
