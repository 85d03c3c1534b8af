"""The trainer's side of the rewards on a real cluster: embedded, deployed separately, and over HTTP."""

from __future__ import annotations

import asyncio
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
from reward_service.client.local import local_rewards
from reward_service.client.reward_sum import RewardSum
from reward_service.client.start import start_rewards
from reward_service.contract.results import RewardFailure
from reward_service.contract.settings import ServedReward
from reward_service.on_ray.app import embedded_app
from tests.integration.rewards.apps import LIMIT_S, ROOT, Cluster, images_of, start_serve, wait_until

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
    """Started rewards that are shut down afterwards."""
    section = RewardServiceSection.model_validate({**SECTION.model_dump(), **settings})
    owner = f"test {run_name}"
    started = start_rewards(rewards, gold or {}, section, run_name, owner, start_limit_s=LIMIT_S)
    try:
        yield started
    finally:
        started.shutdown()


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


async def ask_all(rewards: RewardSum, prompts: list[str], with_gold: bool = False) -> dict[str, object]:
    """What comes of groups of these prompts that are asked about together."""
    asked = (rewards.score(prompt, ray.put(images_of(prompt)), 4, with_gold) for prompt in prompts)
    answers = await asyncio.wait_for(asyncio.gather(*asked), LIMIT_S)
    return dict(zip(prompts, answers, strict=True))


def score_all(rewards: RewardSum, prompts: list[str], with_gold: bool = False) -> dict[str, object]:
    """ask_all where no event loop runs."""
    return asyncio.run(ask_all(rewards, prompts, with_gold))


def assert_scored(answers: dict[str, object], rewards: Entries) -> None:
    """Each answer is what the rewards say in this process."""
    local = local_rewards(rewards, {}, SECTION)
    for prompt, answer in answers.items():
        assert isinstance(answer, GroupScore), answer
        wanted = local.score_group(prompt, images_of(prompt))
        np.testing.assert_allclose(answer.rewards, wanted.rewards, rtol=1e-12)
        np.testing.assert_allclose(answer.differences, wanted.differences, atol=1e-12)


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardSum]:
    """One replica of a scorer whose failures are asked for in the prompt; a batch may take 1.5 s."""
    rewards: Entries = {"moody": spec("Moody", folder=str(tmp_path_factory.mktemp("moods")))}
    with running(
        rewards, run_name="moods", retries=1, timeout_s=1.5, queue_groups=14, max_batch_groups=4
    ) as started:
        yield started


def assert_dropped(answer: object, *reasons: str) -> None:
    """The group has no score, with these reasons."""
    assert isinstance(answer, RewardFailure)
    for reason in reasons:
        assert reason in answer.reason


def test_embedded_rewards_are_applications_of_their_own_and_score_as_without_ray() -> None:
    rewards: Entries = {"red": spec("Redness", weight=3.0), "duel": spec("GreenDuel", weight=-0.5)}
    gold: Entries = {"length": spec("PromptLength", scale=2.0)}
    with running(rewards, gold) as started:
        assert {"run-red", "run-duel", "run-length"} <= set(serve.status().applications)
        prompts = [f"prompt {row}" for row in range(16)]
        assert_scored(score_all(started, prompts), rewards)
        score = score_all(started, ["with gold"], with_gold=True)["with gold"]
        assert isinstance(score, GroupScore)
        assert list(score.parts) == ["red", "duel", "length"]
        assert [stamp.name for stamp in score.scorers] == ["red", "duel", "length"]
        reports = started.take_reports()
        assert [reports[name].groups for name in ("red", "duel", "length")] == [17, 17, 1]
        assert reports["duel"].residual > 0.0
        assert all(report.busy_s > 0.0 for report in reports.values())
    assert not {"run-red", "run-duel", "run-length"} & set(serve.status().applications)


def test_only_the_groups_a_scorer_fails_on_are_dropped_with_its_reason(moody: RewardSum) -> None:
    before = moody.retries
    answers = score_all(moody, ["a cat", "a dog", "raise now", "nan now"])
    assert_dropped(answers.pop("raise now"), "moody: Dropped after 2 tries", "the judge is out")
    assert_dropped(answers.pop("nan now"), "not finite")
    assert_scored(answers, RED)
    short = asyncio.run(moody.score("a cat", ray.put(images_of("a cat")), 5))
    assert_dropped(short, "needed is (5,)")
    assert moody.retries - before == 3


def test_hanging_and_deadly_groups_are_dropped_alone_and_in_time(moody: RewardSum) -> None:
    answers = score_all(moody, ["hang now", "die now", *(f"prompt {row}" for row in range(8))])
    assert_dropped(answers.pop("hang now"), "longer than timeout_s", "2 tries")
    assert_dropped(answers.pop("die now"), "The replica that scored it died", "2 tries")
    assert_scored(answers, RED)


def test_a_deployed_application_is_used_swapped_and_left_alone(deployed: str) -> None:
    with running({"mine": AppReward(app=deployed, weight=2.0)}) as started:
        assert_scored(score_all(started, ["a cat"]), {"mine": spec("Redness", weight=2.0)})
        assert version_of(started) == ("mine", "1")
        deploy(deployed, "Redness", version="second")
        wait_until(lambda: version_of(started) == ("mine", "1+second"), "the second version answers")
    assert deployed in serve.status().applications


def version_of(rewards: RewardSum) -> tuple[str, str]:
    """Name and version of the one reward that scores a group now; it must have a score."""
    score = score_all(rewards, ["a dog"])["a dog"]
    assert isinstance(score, GroupScore), score
    (stamp,) = score.scorers
    return stamp.name, stamp.version


@pytest.mark.slow
def test_a_deployed_application_may_be_away_for_a_while_and_not_for_longer(deployed: str) -> None:
    rewards: Entries = {"mine": AppReward(app=deployed)}

    async def while_it_is_away(patient: RewardSum, hasty: RewardSum) -> dict[str, object]:
        serve.delete(deployed)
        waiting = asyncio.create_task(ask_all(patient, [f"prompt {row}" for row in range(6)]))
        for answer in (await ask_all(hasty, ["a cat", "a dog"])).values():
            assert_dropped(answer, "reward_service.outage_s")
        assert not waiting.done()
        await asyncio.to_thread(deploy, deployed, "Redness")
        return await waiting

    with running(rewards) as patient, running(rewards, outage_s=1.0) as hasty:
        assert_scored(asyncio.run(while_it_is_away(patient, hasty)), RED)


@pytest.mark.slow
def test_serve_may_be_shut_down_and_started_again(deployed: str, shared: Cluster) -> None:
    async def across_two_serves(rewards: RewardSum) -> dict[str, object]:
        await ask_all(rewards, ["a cat"])
        await asyncio.to_thread(serve.shutdown)
        waiting = asyncio.create_task(ask_all(rewards, [f"prompt {row}" for row in range(6)]))
        await asyncio.to_thread(start_serve, shared.http_port)
        await asyncio.to_thread(deploy, deployed, "Redness")
        return await waiting

    with running({"mine": AppReward(app=deployed)}) as started:
        assert_scored(asyncio.run(across_two_serves(started)), RED)


def test_applications_that_are_not_there_are_named_with_those_that_are(deployed: str) -> None:
    with pytest.raises(RewardError, match=r"Reward 'mine': .*no application 'colour'; it has: .*colours"):
        start_rewards({"mine": AppReward(app="colour")}, {}, SECTION, "run", "owner")


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


@pytest.mark.slow
def test_an_address_scores_the_same_beside_an_embedded_reward_until_it_is_gone(tmp_path: Path) -> None:
    with ExitStack() as stack:
        address = stack.enter_context(server(tmp_path, "GreenDuel"))
        rewards: Entries = {"far": UrlReward(url=address, weight=2.0), "red": spec("Redness")}
        with running(rewards, outage_s=3.0) as started:
            answers = score_all(started, [f"prompt {row}" for row in range(12)])
            assert_scored(answers, {"far": spec("GreenDuel", weight=2.0), "red": spec("Redness")})
            assert_scored(answers, rewards)
            stack.close()
            assert_dropped(score_all(started, ["a dog"])["a dog"], "far: ", "gave no answer")


@pytest.mark.slow
def test_resources_that_are_not_there_are_named_in_time_and_nothing_stays() -> None:
    section = RewardServiceSection(cpus=64.0)
    with pytest.raises(StuckError, match=r"not ready after 1 s.*CPUs"):
        start_rewards(RED, {}, section, "big", "owner", start_limit_s=1.0)
    assert "big-red" not in serve.status().applications
