"""HTTP through Serve's own proxy and the gateway: scores, the token, back-pressure, a killed replica."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
import ray
from ray import serve
from ray.serve.context import _get_global_client

from common.config.services import RewardEntry, RewardServiceSection, UrlReward
from common.errors import RewardError
from common.trajectory import GroupScore, RewardScores
from reward_service.client.reward_sum import RewardSum
from reward_service.client.start import start_rewards
from reward_service.contract.results import RewardFailure
from reward_service.contract.settings import ServedReward
from reward_service.http.client import HttpReward, Retrying
from reward_service.http.limits import HttpLimits
from reward_service.http.token import NO_TOKEN, Token, TokenSource
from reward_service.http.wire import JSON, SAFETENSORS, Group
from reward_service.on_ray.app import embedded_app
from reward_service.on_ray.gateway import build_gateway
from reward_service.on_ray.handles import reward_handle
from tests.integration.rewards.apps import LIMIT_S, Cluster, images_of, pids, wait_until
from tests.reward_service.http_calls import connected

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TOKEN = Token("a-token-of-the-tests-0123456789")
LIMITS = HttpLimits(body_bytes=2 << 20, held_bytes=16 << 20, image_pixels=1 << 18, images=16)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
RED = PIXELS[..., 0].mean(axis=(1, 2)) / 255.0
PATIENT = Retrying(tries=200, longest_wait_s=2.0)
MOODY = ServedReward(scorer="tests.reward_service.scorers:Moody", max_batch_groups=1, queue_groups=2)


@pytest.fixture(scope="module")
def base(shared: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the proxy; below it /guarded with a token and /open without."""
    place = tmp_path_factory.mktemp("token") / "token"
    place.write_text(TOKEN.get_secret_value() + "\n")
    sources = {"guarded": TokenSource(file=str(place)), "open": TokenSource()}
    section = RewardServiceSection(queue_groups=2)
    apps = {
        name: build_gateway(embedded_app(name, "", MOODY, section), LIMITS, source)
        for name, source in sources.items()
    }
    targets = [serve.RunTarget(app, name=name, route_prefix=f"/{name}") for name, app in apps.items()]
    serve.run_many(targets)
    return f"http://127.0.0.1:{shared.http_port}"


@pytest.mark.parametrize("wire", [JSON, SAFETENSORS], ids=["json", "safetensors"])
@pytest.mark.parametrize(("app", "token"), [("guarded", TOKEN), ("open", NO_TOKEN)])
def test_a_group_is_scored_as_without_http(base: str, wire: Any, app: str, token: Token) -> None:
    client = HttpReward(f"{base}/{app}", token, LIMIT_S, wire)
    outcome = client.score("calm", PIXELS).outcome
    assert isinstance(outcome, RewardScores)
    np.testing.assert_array_equal(outcome.rewards, RED)
    assert client.describe().stamp == outcome.stamp
    assert httpx2.get(f"{base}/{app}/v1/health", headers=token.headers(), timeout=60).status_code == 200
    client.close()


def test_a_group_larger_than_a_message_is_scored(base: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 512, 512, 3), dtype=np.uint8)
    outcome = HttpReward(f"{base}/guarded", TOKEN, LIMIT_S).score("calm", pixels).outcome
    assert isinstance(outcome, RewardScores)
    np.testing.assert_array_equal(outcome.rewards, pixels[..., 0].mean(axis=(1, 2)) / 255.0)


def test_only_holders_of_the_token_are_answered(base: str) -> None:
    for path in ("/v1/describe", "/v1/ready", "/openapi.json"):
        assert httpx2.get(f"{base}/guarded{path}", timeout=60).status_code == 401
    with pytest.raises(RewardError, match="401"):
        HttpReward(f"{base}/guarded", Token("another-token-0123456789"), LIMIT_S).score("calm", PIXELS)


def test_without_a_token_a_forwarded_request_is_refused(base: str) -> None:
    forwarded = httpx2.get(f"{base}/open/v1/ready", headers={"X-Forwarded-For": "203.0.113.9"}, timeout=60)
    assert forwarded.status_code == 401
    named = httpx2.get(f"{base}/open/v1/ready", headers={"Host": "evil.example.org"}, timeout=60)
    assert named.status_code == 401


def test_a_crowd_is_turned_away_and_comes_back(base: str) -> None:
    headers = {"Content-Type": JSON.content_type, **TOKEN.headers()}

    def ask(number: int) -> int:
        body = JSON.encode_group(Group(f"nap {number}", PIXELS[:2]))
        answer = httpx2.post(f"{base}/guarded/v1/score", content=body, headers=headers, timeout=LIMIT_S)
        assert (answer.status_code in (429, 503)) == ("Retry-After" in answer.headers)
        return answer.status_code

    def insist(number: int) -> bool:
        client = HttpReward(f"{base}/guarded", TOKEN, LIMIT_S)
        return isinstance(client.score(f"nap {number}", PIXELS[:2]).outcome, RewardScores)

    with ThreadPoolExecutor(8) as pool:
        assert {200, 429} <= set(pool.map(ask, range(8))) <= {200, 429, 503}
        assert all(pool.map(insist, range(8)))


def test_connections_without_a_request_turn_no_good_one_away(base: str) -> None:
    """Some that send nothing, and more half requests without a token than the gateway takes requests."""
    half = b"POST /guarded/v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with connected(base, 300, b""), connected(base, 300, half):
        client = HttpReward(f"{base}/guarded", TOKEN, LIMIT_S, retrying=Retrying(tries=1))
        outcomes = [client.score("calm", PIXELS).outcome for _ in range(10)]
    assert all(isinstance(outcome, RewardScores) for outcome in outcomes)


HOSTILE = [
    (JSON.content_type, b"[" * 100_000),
    (JSON.content_type, b'{"prompt": "a", "images": ["iVBORw0KGgo="]}'),
    (SAFETENSORS.content_type, b"\xff" * 64),
    (SAFETENSORS.content_type, bytes(8)),
    ("application/x-pickle", b"\x80\x04."),
    (SAFETENSORS.content_type, bytes(LIMITS.body_bytes + 1)),
]


def test_hostile_requests_leave_the_application_as_it_was(base: str) -> None:
    before = pids("guarded")
    for content_type, body in HOSTILE:
        headers = {"Content-Type": content_type, **TOKEN.headers()}
        answer = httpx2.post(f"{base}/guarded/v1/score", content=body, headers=headers, timeout=LIMIT_S)
        assert answer.status_code in (400, 413, 415, 422), (content_type, body[:20], answer.text)
        assert TOKEN.get_secret_value() not in answer.text
        assert "Traceback" not in answer.text
    assert isinstance(
        HttpReward(f"{base}/guarded", TOKEN, LIMIT_S).score("calm", PIXELS).outcome, RewardScores
    )
    assert pids("guarded") == before


def test_a_killed_replica_costs_no_group(base: str) -> None:
    (victim,) = pids("guarded")
    os.kill(victim, signal.SIGKILL)
    outcome = HttpReward(f"{base}/guarded", TOKEN, LIMIT_S, retrying=PATIENT).score("calm", PIXELS).outcome
    assert isinstance(outcome, RewardScores)
    wait_until(lambda: bool(pids("guarded") - {victim}), "another replica")
    assert reward_handle("guarded").describe.remote().result(timeout_s=LIMIT_S).ready


def asked(base: str, prompts: list[str], meanwhile: Callable[[], None] = lambda: None) -> dict[str, object]:
    """What a run's rewards over HTTP say about groups of these prompts. meanwhile: once one is answered."""

    async def ask_all(started: RewardSum) -> list[object]:
        waiting = [
            asyncio.create_task(started.score(prompt, ray.put(images_of(prompt)), 4)) for prompt in prompts
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        meanwhile()
        return await asyncio.wait_for(asyncio.gather(*waiting), LIMIT_S)

    rewards: dict[str, RewardEntry] = {"far": UrlReward(url=f"{base}/open")}
    started = start_rewards(rewards, {}, RewardServiceSection(retries=1), run_name="http", owner="a test")
    try:
        return dict(zip(prompts, asyncio.run(ask_all(started)), strict=True))
    finally:
        started.shutdown()


def assert_all_scored(answers: dict[str, object]) -> None:
    """As without HTTP."""
    for prompt, score in answers.items():
        assert isinstance(score, GroupScore), score
        red = images_of(prompt)[..., 0].mean(axis=(1, 2)) / 255.0
        np.testing.assert_array_equal(score.rewards, red)


def test_a_deadly_group_costs_itself_only(base: str) -> None:
    answers = asked(base, ["die now", *(f"prompt {row}" for row in range(10))])
    dropped = answers.pop("die now")
    assert isinstance(dropped, RewardFailure)
    assert "Dropped after 2 tries" in dropped.reason
    assert "503 (lost): The replica that had it died" in dropped.reason
    assert len(answers) == 10
    assert_all_scored(answers)


@pytest.mark.slow
def test_a_killed_proxy_costs_no_group(base: str) -> None:
    def kill_proxies() -> None:
        for proxy in _get_global_client().get_serve_details()["proxies"].values():
            ray.kill(ray.get_actor(proxy["actor_name"], namespace="serve"))

    answers = asked(base, [f"nap {row}" for row in range(12)], kill_proxies)
    assert len(answers) == 12
    assert_all_scored(answers)
