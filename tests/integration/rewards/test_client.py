"""The trainer's side of the rewards on a real cluster: embedded, deployed separately, and over HTTP."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import serve

from common.config.services import AppReward, RewardEntry, RewardServiceSection, RewardSpec, UrlReward
from common.errors import RewardError, StuckError
from common.trajectory import GroupScore
from reward_service.client.ledger import PendingScore
from reward_service.client.local import local_mix
from reward_service.client.reward_sum import Answer, RewardSum
from reward_service.client.start import start_mix
from reward_service.contract.results import RewardFailure
from reward_service.contract.settings import ServedReward
from reward_service.on_ray.app import embedded_app
from tests.integration.rewards.apps import LIMIT_S, ROOT, images_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SCORERS = "tests.reward_service.scorers"
Entries = dict[str, RewardEntry]
SECTION = RewardServiceSection(timeout_s=20.0, cpus=0.25)


def spec(name: str, weight: float = 1.0, **options: str | int | float | bool) -> RewardSpec:
    """A scorer of the tests."""
    return RewardSpec(scorer=f"{SCORERS}:{name}", weight=weight, options=options)


RED: Entries = {"red": spec("Redness")}


@contextmanager
def running(
    rewards: Entries, gold: Entries | None = None, run_name: str = "run", **settings: object
) -> Iterator[RewardSum]:
    """A started mix that is shut down afterwards."""
    section = RewardServiceSection.model_validate({**SECTION.model_dump(), **settings})
    mix = start_mix(rewards, gold or {}, section, run_name, owner=f"test {run_name}", start_limit_s=LIMIT_S)
    try:
        yield mix
    finally:
        mix.shutdown()


def deploy(app: str, scorer: str, version: str = "") -> None:
    """Put up an application as a person would, or change the settings of the one that runs."""
    settings = ServedReward(scorer=f"{SCORERS}:{scorer}", version=version)
    built = embedded_app("colour", "a person", settings, SECTION)
    serve.run(built, name=app, route_prefix=None)


@pytest.fixture(scope="module")
def deployed() -> Iterator[str]:
    """A separately deployed application of Redness; tests leave it running."""
    deploy("colours", "Redness")
    yield "colours"
    serve.delete("colours")


def submit(mix: RewardSum, prompts: list[str], with_gold: bool = False) -> list[PendingScore]:
    """Put the pictures in the object store and submit their references."""
    return [mix.submit(prompt, ray.put(images_of(prompt)), 4, with_gold) for prompt in prompts]


def collect_all(mix: RewardSum, limit_s: float = LIMIT_S) -> dict[PendingScore, object]:
    """Every answer; fails past the limit."""
    end_at = time.monotonic() + limit_s
    answers: list[Answer] = []
    while mix.outstanding:
        assert time.monotonic() < end_at, f"{mix.outstanding} groups without an answer"
        answers += mix.wait(1.0)
    return dict(answers)


def assert_scored(answers: dict[PendingScore, object], rewards: Entries) -> None:
    """Each answer is what the rewards say in this process."""
    local = local_mix(rewards, {}, SECTION)
    for pending, answer in answers.items():
        assert isinstance(answer, GroupScore), answer
        wanted = local.score_group(pending.prompt, images_of(pending.prompt))
        np.testing.assert_allclose(answer.rewards, wanted.rewards, rtol=1e-12)
        np.testing.assert_allclose(answer.differences, wanted.differences, atol=1e-12)


@pytest.fixture(scope="module")
def moody_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardSum]:
    """One replica of a scorer whose failures are asked for in the prompt; a batch may take 1.5 s."""
    rewards: Entries = {"moody": spec("Moody", folder=str(tmp_path_factory.mktemp("moods")))}
    with running(
        rewards, run_name="moods", retries=1, timeout_s=1.5, queue_groups=14, max_batch_groups=4
    ) as mix:
        yield mix


@pytest.fixture
def moody(moody_app: RewardSum) -> Iterator[RewardSum]:
    """The application of the module; what a failed test leaves in it is cleared away."""
    yield moody_app
    collect_all(moody_app)


def assert_dropped(answer: object, *reasons: str) -> None:
    """The group has no score, with these reasons."""
    assert isinstance(answer, RewardFailure)
    for reason in reasons:
        assert reason in answer.reason


def test_embedded_rewards_are_applications_of_their_own_and_score_as_without_ray() -> None:
    rewards: Entries = {"red": spec("Redness", weight=3.0), "duel": spec("GreenDuel", weight=-0.5)}
    gold: Entries = {"length": spec("PromptLength", scale=2.0)}
    with running(rewards, gold) as mix:
        assert {"run-red", "run-duel", "run-length"} <= set(serve.status().applications)
        pending = submit(mix, [f"prompt {row}" for row in range(16)])
        answers = collect_all(mix)
        assert set(answers) == set(pending)
        assert_scored(answers, rewards)
        assert mix.counters().scored == 16
        assert mix.counters().busy_s > 0.0
        (asked,) = submit(mix, ["with gold"], with_gold=True)
        score = collect_all(mix)[asked]
        assert isinstance(score, GroupScore)
        assert list(score.parts) == ["red", "duel", "length"]
        assert score.scorers == mix.stamps(with_gold=True)
        reports = mix.take_reports()
        assert [reports[name].groups for name in ("red", "duel", "length")] == [17, 17, 1]
        assert reports["duel"].residual > 0.0
    assert not {"run-red", "run-duel", "run-length"} & set(serve.status().applications)


def test_only_the_groups_a_scorer_fails_on_are_dropped_with_its_reason(moody: RewardSum) -> None:
    before = moody.counters()
    good = submit(moody, ["a cat", "a dog"])
    raising, nan = submit(moody, ["raise now", "nan now"])
    short = moody.submit("a cat", ray.put(images_of("a cat")), 5)
    answers = collect_all(moody)
    assert_scored({pending: answers[pending] for pending in good}, RED)
    assert_dropped(answers[raising], "moody: Dropped after 2 tries", "the judge is out")
    assert_dropped(answers[nan], "not finite")
    assert_dropped(answers[short], "needed is (5,)")
    assert (moody.counters().dropped - before.dropped, moody.counters().retries - before.retries) == (3, 4)


def test_no_more_groups_than_allowed_wait(moody: RewardSum) -> None:
    submit(moody, [f"slow {row}" for row in range(14)])
    assert moody.room == 0
    with pytest.raises(RewardError, match=r"queue_groups \(14\)"):
        submit(moody, ["d"])
    assert len(collect_all(moody)) == 14
    assert moody.room == 14


def test_hanging_and_deadly_groups_are_dropped_alone_and_in_time(moody: RewardSum) -> None:
    hanging, deadly = submit(moody, ["hang now", "die now"])
    good = submit(moody, [f"prompt {row}" for row in range(8)])
    answers = collect_all(moody)
    assert_dropped(answers[hanging], "longer than timeout_s (1.5 s)")
    assert_dropped(answers[deadly], "The replica that scored it died")
    assert_scored({pending: answers[pending] for pending in good}, RED)


def test_a_deployed_application_is_used_swapped_and_left_alone(deployed: str) -> None:
    with running({"mine": AppReward(app=deployed, weight=2.0)}) as mix:
        submit(mix, ["a cat"])
        assert_scored(collect_all(mix), {"mine": spec("Redness", weight=2.0)})
        (first,) = mix.stamps()
        assert first.name == "mine"
        deploy(deployed, "Redness", version="second")
        end_at = time.monotonic() + LIMIT_S
        while mix.counters().swaps == 0 and time.monotonic() < end_at:
            submit(mix, ["a dog"])
            (score,) = collect_all(mix).values()
            assert isinstance(score, GroupScore)
        assert mix.counters().swaps == 1
        assert score.scorers[0].version == "1+second"
        assert mix.stamps() == score.scorers
        assert mix.counters().dropped == 0
    assert deployed in serve.status().applications


def test_a_deployed_application_may_be_away_for_a_while_and_not_for_longer(deployed: str) -> None:
    rewards: Entries = {"mine": AppReward(app=deployed)}
    with running(rewards) as patient, running(rewards, outage_s=1.0) as hasty:
        serve.delete(deployed)
        pending = submit(patient, [f"prompt {row}" for row in range(6)])
        submit(hasty, ["a cat", "a dog"])
        for answer in collect_all(hasty, limit_s=60.0).values():
            assert_dropped(answer, "reward_service.outage_s")
        deploy(deployed, "Redness")
        answers = collect_all(patient)
        assert set(answers) == set(pending)
        assert_scored(answers, RED)


def test_applications_that_are_not_there_are_named_with_those_that_are(deployed: str) -> None:
    with pytest.raises(RewardError, match=r"Reward 'mine': .*no application 'colour'; it has: .*colours"):
        start_mix({"mine": AppReward(app="colour")}, {}, SECTION, "run", "owner")


@contextmanager
def server(folder: Path, scorer: str) -> Iterator[str]:
    """The address of a server of one process."""
    code = (
        "from reward_service.http.standalone import run_server\n"
        "from reward_service.http.limits import HttpLimits\n"
        "from reward_service.http.token import NO_TOKEN\n"
        "from reward_service.contract.settings import ServedReward\n"
        f"served = ServedReward(scorer='{SCORERS}:{scorer}')\n"
        "run_server('far', served, '127.0.0.1', 0, NO_TOKEN, HttpLimits())\n"
    )
    with (folder / "server.log").open("w+") as log, ExitStack() as stack:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=log, stderr=log)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        end_at = time.monotonic() + LIMIT_S
        while "answers at" not in (text := (folder / "server.log").read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < end_at, text
            time.sleep(0.2)
        yield text.split("answers at ")[1].split()[0]


def test_an_address_scores_the_same_beside_an_embedded_reward_until_it_is_gone(tmp_path: Path) -> None:
    with ExitStack() as stack:
        address = stack.enter_context(server(tmp_path, "GreenDuel"))
        rewards: Entries = {"far": UrlReward(url=address, weight=2.0), "red": spec("Redness")}
        with running(rewards, outage_s=3.0) as mix:
            submit(mix, [f"prompt {row}" for row in range(12)])
            answers = collect_all(mix)
            assert len(answers) == 12
            assert_scored(answers, {"far": spec("GreenDuel", weight=2.0), "red": spec("Redness")})
            assert_scored(answers, rewards)
            assert [stamp.name for stamp in mix.stamps()] == ["far", "red"]
            stack.close()
            submit(mix, ["a dog"])
            (answer,) = collect_all(mix, limit_s=60.0).values()
            assert_dropped(answer, "far: ", "gave no answer")


def test_resources_that_are_not_there_are_named_in_time_and_nothing_stays() -> None:
    section = RewardServiceSection(cpus=64.0)
    with pytest.raises(StuckError, match=r"not ready after 1 s.*CPUs"):
        start_mix(RED, {}, section, "big", "owner", start_limit_s=1.0)
    assert "big-red" not in serve.status().applications
