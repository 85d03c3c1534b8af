"""The reward application on a real Ray cluster and real Serve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import ray
from ray import serve

from common.config.services import RewardServiceSection, RewardSpec
from common.errors import RewardError, StuckError
from common.trajectory import GroupScore, ImageGroup, NoiseKey, PolicyStamp, ScorerStamp
from reward_service import deployment
from reward_service.client import RewardClient
from reward_service.ledger import PendingScore
from reward_service.rewards import Answer
from reward_service.service import RewardFailure, build_service

pytestmark = pytest.mark.integration

SCORERS = "tests.reward_service.scorers"
Specs = dict[str, RewardSpec]
LIMIT_S = 120.0  # a replaced replica on a busy machine may take half a minute


def spec(name: str, **options: str | int | float | bool) -> RewardSpec:
    """A scorer of the tests."""
    return RewardSpec(scorer=f"{SCORERS}:{name}", options=options)


RED = {"red": spec("Redness")}


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()
    ray.shutdown()


@contextmanager
def running(
    rewards: Specs, gold: Specs | None = None, app_name: str = "rewards", **settings: object
) -> Iterator[RewardClient]:
    """A started client that is shut down afterwards."""
    section = RewardServiceSection.model_validate({"timeout_s": 20.0, "cpus": 0.5, **settings})
    client = RewardClient.start(rewards, gold or {}, section, app_name, start_limit_s=LIMIT_S)
    try:
        yield client
    finally:
        client.shutdown()


def images_of(prompt: str, count: int = 4) -> ImageGroup:
    """Pictures that depend on the prompt only."""
    generator = np.random.default_rng(sum(prompt.encode()))
    pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageGroup(prompt, NoiseKey(0, "train", 0, 0), PolicyStamp(0, "", "run"), pixels)


def submit(client: RewardClient, prompts: list[str], with_gold: bool = False) -> list[PendingScore]:
    """Put the pictures in the object store and submit their references."""
    return [client.submit(prompt, ray.put(images_of(prompt)), with_gold) for prompt in prompts]


def collect_all(client: RewardClient, limit_s: float = LIMIT_S) -> dict[PendingScore, object]:
    """Every answer; fails past the limit."""
    end_at = time.monotonic() + limit_s
    answers: list[Answer] = []
    while client.outstanding:
        assert time.monotonic() < end_at, f"{client.outstanding} groups without an answer"
        answers += client.wait(1.0)
    return dict(answers)


def assert_scored(answers: dict[PendingScore, object], rewards: Specs) -> None:
    """Each answer is what the service says without Ray."""
    service = build_service(rewards, {})
    for pending, answer in answers.items():
        assert isinstance(answer, GroupScore), answer
        wanted = service.score_group(pending.prompt, images_of(pending.prompt).pixels)
        np.testing.assert_allclose(answer.rewards, wanted.rewards, rtol=1e-12)
        np.testing.assert_allclose(answer.differences, wanted.differences, atol=1e-12)


@pytest.fixture(scope="module")
def moody_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardClient]:
    """One replica of a scorer whose failures are asked for in the prompt; a batch may take 3 s."""
    rewards = {"moody": spec("Moody", folder=str(tmp_path_factory.mktemp("moods")))}
    with running(rewards, app_name="moody", retries=1, timeout_s=3.0, queue_groups=14) as client:
        yield client


@pytest.fixture
def moody(moody_app: RewardClient) -> Iterator[RewardClient]:
    """The application of the module; what a failed test leaves in it is cleared away."""
    yield moody_app
    collect_all(moody_app)


def assert_dropped(answer: object, *reasons: str) -> None:
    """The group has no score, with these reasons."""
    assert isinstance(answer, RewardFailure)
    for reason in ("Dropped after 2 tries", *reasons):
        assert reason in answer.reason


def test_groups_by_reference_score_as_they_do_without_ray() -> None:
    rewards = {
        "red": RewardSpec(scorer=f"{SCORERS}:Redness", weight=3.0),
        "duel": spec("GreenDuel"),
        "small": RewardSpec(scorer="jpeg_compressibility", weight=-0.5),
    }
    gold = {"length": spec("PromptLength", scale=2.0), "threads": spec("Threads")}
    with running(rewards, gold, replicas=2, threads=2) as client:
        pending = submit(client, [f"prompt {row}" for row in range(16)])
        answers = collect_all(client)
        assert set(answers) == set(pending)
        assert_scored(answers, rewards)
        assert client.counters().scored == 16
        assert client.counters().busy_s > 0.0

        (asked,) = submit(client, ["with gold"], with_gold=True)
        score = collect_all(client)[asked]
        assert isinstance(score, GroupScore)
        assert set(score.parts) == {"red", "duel", "small", "length", "threads"}
        assert score.scorers == client.stamps(with_gold=True)
        assert score.scorers[-2] == ScorerStamp("length", "2", "scale-2.0")
        np.testing.assert_allclose(score.parts["threads"], 2.02)
        assert serve.status().proxies == {}


def test_a_driver_can_wait_for_scores_and_other_work_at_once(moody: RewardClient) -> None:
    @ray.remote(num_cpus=0)
    def other_work() -> str:
        time.sleep(0.2)
        return "done"

    others = [other_work.remote()]
    submit(moody, ["slow cat", "slow dog"])
    scores: list[Answer] = []
    finished = []
    end_at = time.monotonic() + 30.0
    while (others or moody.outstanding) and time.monotonic() < end_at:
        ready, _ = ray.wait([*others, *moody.refs()], num_returns=1, timeout=moody.poll_s())
        finished += [ray.get(reference) for reference in ready if reference in others]
        others = [reference for reference in others if reference not in ready]
        scores += moody.collect()
    assert finished == ["done"]
    assert_scored(dict(scores), RED)
    assert len(scores) == 2


def test_only_the_groups_a_scorer_fails_on_are_dropped_with_its_reason(moody: RewardClient) -> None:
    before = moody.counters()
    good = submit(moody, ["a cat", "a dog"])
    raising, nan = submit(moody, ["raise now", "nan now"])
    foreign = moody.submit("a cat", ray.put(images_of("a dog")))
    answers = collect_all(moody)
    assert_scored({pending: answers[pending] for pending in good}, RED)
    assert_dropped(answers[raising], "the judge is out")
    assert_dropped(answers[nan], "not finite")
    assert_dropped(answers[foreign], "'a dog'")
    assert (moody.counters().dropped - before.dropped, moody.counters().retries - before.retries) == (3, 3)


def test_a_transient_failure_is_scored_at_a_later_try(moody: RewardClient) -> None:
    for prompt in ("raise once", "nan once"):
        submit(moody, [prompt])
        answers = collect_all(moody)
        # The group is scored again by itself inside the replica, which is a second try already.
        assert_scored(answers, RED)
        assert len(answers) == 1


def test_no_more_groups_than_allowed_wait(moody: RewardClient) -> None:
    submit(moody, [f"slow {row}" for row in range(14)])
    assert moody.room == 0
    with pytest.raises(RewardError, match=r"queue_groups \(14\)"):
        submit(moody, ["d"])
    assert moody.wait(0.0) == []
    assert len(collect_all(moody)) == 14
    assert moody.room == 14


def test_a_hanging_scorer_costs_its_group_only_and_in_time(moody: RewardClient) -> None:
    (hanging,) = submit(moody, ["hang now"])
    good = submit(moody, [f"prompt {row}" for row in range(10)])
    answers = collect_all(moody)
    assert_dropped(answers[hanging], "longer than reward_service.timeout_s (3 s)")
    assert_scored({pending: answers[pending] for pending in good}, RED)


def test_a_killed_replica_is_replaced_and_its_groups_score_the_same(moody: RewardClient) -> None:
    before = moody.counters()
    submit(moody, ["a cat", "die once", *(f"prompt {row}" for row in range(10))])
    answers = collect_all(moody)
    assert len(answers) == 12
    assert_scored(answers, RED)
    assert moody.counters().retries > before.retries


def test_a_group_that_kills_every_replica_is_dropped_alone(moody: RewardClient) -> None:
    (deadly,) = submit(moody, ["die now"])
    good = submit(moody, ["a cat", "a dog"])
    answers = collect_all(moody)
    assert_dropped(answers[deadly], "The replica that scored it died")
    assert_scored({pending: answers[pending] for pending in good}, RED)


def second_client(app_name: str, stamps: tuple[ScorerStamp, ...], timeout_s: float) -> RewardClient:
    """Another driver's view of a running application."""
    section = RewardServiceSection(retries=1, timeout_s=timeout_s)
    running_app = deployment.Deployment(app_name, serve.get_app_handle(app_name), stop_serve=False)
    return RewardClient(running_app, section, {False: stamps, True: stamps}, start_limit_s=LIMIT_S)


def test_an_answer_by_other_scorers_is_refused(moody: RewardClient) -> None:
    client = second_client("moody", (ScorerStamp("moody", "0", ""),), timeout_s=20.0)
    submit(client, ["a cat"])
    (failure,) = collect_all(client).values()
    assert_dropped(failure, "Answered by")


def test_a_replica_that_answers_nothing_is_given_up(moody: RewardClient) -> None:
    client = second_client("moody", moody.stamps(), timeout_s=0.1)
    (napping,) = submit(client, ["nap now"])
    assert_dropped(collect_all(client)[napping], "No answer 0.2 s after a replica took it")
    submit(moody, ["a cat"])
    assert_scored(collect_all(moody), RED)


def test_resources_that_are_not_there_are_named_in_time() -> None:
    section = RewardServiceSection(cpus=64.0)
    with pytest.raises(StuckError, match=r"not ready after 2 s.*CPUs"):
        RewardClient.start(RED, {}, section, start_limit_s=2.0)
    assert "rewards" not in serve.status().applications


def test_a_wrong_reward_is_refused_before_anything_starts() -> None:
    with pytest.raises(RewardError, match="Did you mean 'clip'"):
        RewardClient.start({"red": RewardSpec(scorer="clib")}, {}, RewardServiceSection())
    assert "rewards" not in serve.status().applications


def test_what_cannot_start_tells_why_and_leaves_nothing_not_even_serve() -> None:
    ray.get_actor(
        "SERVE_CONTROLLER_ACTOR", namespace="serve"
    )  # The applications above have left Serve alone.
    serve.shutdown()
    with pytest.raises(RewardError) as caught:
        RewardClient.start({"bad": spec("Unbuildable")}, {}, RewardServiceSection(), start_limit_s=LIMIT_S)
    assert "OSError('no such model on this machine')" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
