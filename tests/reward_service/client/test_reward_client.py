"""Asking one reward, in virtual time, over a transport that says what the test writes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.services import RewardServiceSection
from common.trajectory import RewardScores
from reward_service.client.reward_client import LONGEST_PAUSE_S, RewardClient
from reward_service.client.transport import FailedError, FinalError, LostError, RefusedError
from reward_service.contract.results import Outcome, RewardFailure
from tests.reward_service.client.scripted import BUSY_S, Hang, Images, Say, ScriptedTransport, scores
from tests.virtual_time import run

OUTAGE_S = 300.0
RETRIES = 2
FULL = RefusedError("full")


def client_of(transport: ScriptedTransport, **section: Any) -> RewardClient:
    """Of the reward "mine"."""
    given = {"outage_s": OUTAGE_S, "retries": RETRIES, **section}
    return RewardClient("mine", transport, RewardServiceSection.model_validate(given))


def ask(transport: ScriptedTransport, *prompts: str, **section: Any) -> tuple[list[Outcome], float]:
    """What comes of groups that are asked about together, and after how many seconds all have come."""

    async def all_of_them() -> tuple[list[Outcome], float]:
        client = client_of(transport, **section)
        outcomes = await asyncio.gather(*(client.score(prompt, Images(), 2) for prompt in prompts))
        assert client.in_work() == []
        return list(outcomes), asyncio.get_running_loop().time()

    return run(all_of_them())


def reason_of(outcome: Outcome) -> str:
    assert isinstance(outcome, RewardFailure)
    return outcome.reason


@pytest.mark.parametrize(("window", "queue", "most"), [(3, 64, 3), (8, 2, 2)])
def test_groups_are_sent_in_order_and_no_more_than_the_window(window: int, queue: int, most: int) -> None:
    transport = ScriptedTransport(window=window)
    prompts = [f"prompt {row}" for row in range(9)]
    outcomes, took_s = ask(transport, *prompts, queue_groups=queue)
    assert all(isinstance(outcome, RewardScores) for outcome in outcomes)
    assert transport.asked == prompts
    assert max(map(len, transport.beside)) == most
    assert took_s == pytest.approx(math.ceil(len(prompts) / most))


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (FailedError("the judge is out"), "the judge is out"),
        (RewardFailure("no image"), "no image"),
        (scores([0.0, math.nan]), "finite"),
        (scores([0.0, 1.0, 2.0]), "(2,)"),
        (scores(name="foreign"), "foreign"),
    ],
)
def test_what_is_no_score_is_asked_for_again_and_never_a_number(say: Say, reason: str) -> None:
    transport = ScriptedTransport({"bad": [say], "mended": [say, say, scores()]})
    (bad, mended), _ = ask(transport, "bad", "mended")
    assert reason in reason_of(bad)
    assert "'bad'" in reason_of(bad)
    assert isinstance(mended, RewardScores)
    assert mended.stamp.name == "mine"
    assert transport.asked.count("bad") == RETRIES + 1


def test_the_score_of_a_group_is_of_one_version_alone() -> None:
    transport = ScriptedTransport({"a": [LostError("died"), FailedError("no"), scores([5.0, 7.0], "2")]})
    (outcome,), _ = ask(transport, "a")
    assert isinstance(outcome, RewardScores)
    assert (outcome.stamp.version, outcome.rewards.tolist()) == ("2", [5.0, 7.0])


def test_groups_that_were_lost_together_are_asked_about_alone() -> None:
    died = LostError("The replica died.")
    transport = ScriptedTransport({"deadly": [died], "victim": [died, scores()]})
    others = [f"prompt {row}" for row in range(6)]
    outcomes, _ = ask(transport, "deadly", "victim", *others)
    assert "The replica died." in reason_of(outcomes[0])
    assert all(isinstance(outcome, RewardScores) for outcome in outcomes[1:])
    again = [beside for beside in transport.beside if beside[-1] in ("deadly", "victim")][2:]
    assert sorted(map(len, again)) == [1] * (RETRIES + 1)
    assert all(transport.asked.count(prompt) == 1 for prompt in others)


def test_a_refusal_is_held_against_nobody_and_asked_again_after_a_pause() -> None:
    patiently: list[Say] = [FULL] * 20
    transport = ScriptedTransport({"a": [*patiently, scores()], "b": [RefusedError("full", 50.0), scores()]})
    (a, b), took_s = ask(transport, "a", "b", retries=0)
    assert isinstance(a, RewardScores)
    assert isinstance(b, RewardScores)
    assert 50.0 < took_s < 20 * (LONGEST_PAUSE_S + 1.0)


def test_a_reward_that_answers_nothing_is_given_up_after_the_outage() -> None:
    transport = ScriptedTransport({"refused": [FULL], "queued": [Hang()]})
    outcomes, took_s = ask(transport, "refused", "queued")
    for outcome in outcomes:
        assert "reward_service.outage_s" in reason_of(outcome)
        assert "It is away." in reason_of(outcome)
    assert OUTAGE_S <= took_s <= OUTAGE_S + LONGEST_PAUSE_S
    assert "queued" in transport.withdrawn


def test_while_it_answers_others_a_refused_group_waits_for_its_turn() -> None:
    patiently: list[Say] = [FULL] * 50
    transport = ScriptedTransport({"refused": [*patiently, scores()]}, window=2, second=20.0)
    others = [f"prompt {row}" for row in range(120)]
    outcomes, took_s = ask(transport, "refused", *others)
    assert isinstance(outcomes[0], RewardScores)
    assert took_s > 2 * OUTAGE_S


def test_a_group_that_is_worked_on_for_longer_than_the_outage_is_waited_for() -> None:
    transport = ScriptedTransport(second=2 * OUTAGE_S, away=None)
    (outcome,), _ = ask(transport, "slow")
    assert isinstance(outcome, RewardScores)


def test_what_never_ends_is_lost_after_the_longest_time_of_a_request() -> None:
    transport = ScriptedTransport({"a": [Hang()]}, away=None, limit_s=100.0)
    (outcome,), took_s = ask(transport, "a", retries=0)
    assert "No answer" in reason_of(outcome)
    assert OUTAGE_S + 100.0 < took_s < 2 * OUTAGE_S + 100.0


def test_what_cannot_be_mended_is_dropped_at_once() -> None:
    transport = ScriptedTransport({"a": [FinalError("Its images are lost.")]})
    (outcome,), _ = ask(transport, "a")
    assert "Its images are lost." in reason_of(outcome)
    assert transport.asked == ["a"]


def test_a_group_that_nobody_waits_for_is_withdrawn_and_its_place_is_free() -> None:
    async def cancelled() -> None:
        transport = ScriptedTransport({"out": [Hang()]}, window=1)
        client = client_of(transport)
        tasks = [asyncio.create_task(client.score(prompt, Images(), 2)) for prompt in ("out", "next", "last")]
        await asyncio.sleep(1.0)
        assert client.in_work() == ["out", "next", "last"]
        tasks[1].cancel()
        tasks[0].cancel()
        assert isinstance(await tasks[2], RewardScores)
        assert transport.withdrawn == ["out"]
        assert transport.asked == ["out", "last"]
        assert client.in_work() == []

    run(cancelled())


def test_what_happened_is_reported_once() -> None:
    async def reported() -> None:
        client = client_of(ScriptedTransport({"b": [FailedError("no"), scores()]}))
        await client.score("a", Images("of a"), 2)
        await asyncio.sleep(2 * OUTAGE_S)  # which is counted from when somebody is asked
        await client.score("b", Images("of b"), 2)
        report = client.take_report()
        assert (report.groups, report.latency_s, report.busy_s) == (2, pytest.approx(2.0), 2 * BUSY_S)
        assert client.take_report().groups == 0
        assert client.retries == 1
        asks = client.take_asks()
        assert [(ask.images, ask.reward) for ask in asks] == [("of a", "mine"), ("of b", "mine")]
        assert all(ask.answered_at - ask.sent_at == pytest.approx(1.0) for ask in asks)
        assert client.take_asks() == []

    run(reported())


_SAYS = st.sampled_from([FailedError("no"), LostError("died"), RewardFailure("no"), FULL, scores()])


@settings(max_examples=60, deadline=None)
@given(scripts=st.lists(st.lists(_SAYS, min_size=1, max_size=5), min_size=1, max_size=8))
def test_whatever_is_said_each_group_has_the_answer_of_its_own_script(scripts: list[list[Say]]) -> None:
    scripts = [[*script, scores()] for script in scripts]
    names = [f"prompt {row}" for row in range(len(scripts))]
    transport = ScriptedTransport(dict(zip(names, scripts, strict=True)), window=3)
    outcomes, _ = ask(transport, *names)
    assert max(map(len, transport.beside)) <= 3
    for name, script, outcome in zip(names, scripts, outcomes, strict=True):
        says = [say for say in script if say is not FULL]
        good = next(row for row, say in enumerate(says) if isinstance(say, RewardScores))
        assert isinstance(outcome, RewardScores) == (good <= RETRIES)
        lost = [row for row, say in enumerate(script) if isinstance(say, LostError)]
        tries = [beside for beside in transport.beside if beside[-1] == name]
        for row in lost:
            if row + 1 < len(tries):
                assert tries[row + 1] == (name,)


def test_refused_settings_are_told_once() -> None:
    transport = ScriptedTransport(refused="no such scorer")

    async def asked_twice() -> list[list[str]]:
        client, told = client_of(transport), []
        for prompt in ("a", "b"):
            await client.score(prompt, Images(), 2)
            told.append(client.take_refusals())
        return told

    assert run(asked_twice()) == [["no such scorer"], []]
