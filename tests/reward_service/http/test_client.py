"""The client against servers that score, stall, lie and fail: a sound reply, or an error that says why."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from common.errors import RewardError
from common.trajectory import RewardScores, ScorerStamp
from reward_service.contract.results import Reply, RewardFailure
from reward_service.http.client import AsyncHttpReward, HttpReward, LostGroupError, Retrying, UnansweredError
from reward_service.http.replies import encode_reply
from reward_service.http.token import NO_TOKEN, Token
from reward_service.http.wire import JSON, SAFETENSORS, Wire
from tests.reward_service.http_calls import TOKEN, served_engine
from tests.reward_service.scripted_http import PART, SCORE, Say, Script, error, scripted

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
QUICK = Retrying(tries=4, first_wait_s=0.01, longest_wait_s=0.05)


def asked(
    script: Script, deadline_s: float = 20.0, retrying: Retrying = QUICK, token: Token = NO_TOKEN
) -> RewardScores:
    """The outcome of one group at a scripted server."""
    with scripted(script) as url:
        outcome = HttpReward(url, token, deadline_s, retrying=retrying).score("a", PIXELS).outcome
    assert isinstance(outcome, RewardScores)
    return outcome


def refused(script: Script, deadline_s: float = 20.0, retrying: Retrying = QUICK) -> str:
    """Why a scripted server gives no score."""
    with pytest.raises(RewardError) as caught:
        asked(script, deadline_s, retrying)
    return str(caught.value)


@pytest.mark.parametrize("wire", [JSON, SAFETENSORS], ids=["json", "safetensors"])
@pytest.mark.parametrize("token", [NO_TOKEN, TOKEN], ids=["open", "token"])
def test_a_real_server_scores(wire: Wire, token: Token) -> None:
    with served_engine("Moody", token) as url:
        client = HttpReward(url, token, 20.0, wire)
        outcome = client.score("calm", PIXELS).outcome
        assert isinstance(outcome, RewardScores)
        np.testing.assert_array_equal(outcome.rewards, PIXELS[..., 0].mean(axis=(1, 2)) / 255.0)
        assert client.describe().stamp == outcome.stamp
        failed = client.score("raise always", PIXELS)
        assert isinstance(failed.outcome, RewardFailure)
        assert "the judge is out" in failed.outcome.reason
        client.close()


def test_a_wrong_token_fails_at_once_and_says_so() -> None:
    wrong = Token("another-token-0123456789")
    with served_engine("Moody", TOKEN) as url:
        started = time.monotonic()
        with pytest.raises(RewardError, match="401") as caught:
            HttpReward(url, wrong, 20.0).score("calm", PIXELS)
    assert time.monotonic() - started < 10.0
    assert wrong.get_secret_value() not in str(caught.value)


@pytest.mark.parametrize("status", [401, 424, 503])
def test_a_server_that_repeats_the_token_does_not_bring_it_into_a_reason(status: int) -> None:
    secret = TOKEN.get_secret_value()
    script = Script(error(status, f"No good: {{'Authorization': 'Bearer {secret}'}}, that is {secret}"))
    with scripted(script) as url:
        client = HttpReward(url, TOKEN, 5.0, retrying=Retrying(tries=1))
        try:
            outcome = client.score("a", PIXELS).outcome
            assert isinstance(outcome, RewardFailure)
            reason = outcome.reason
        except RewardError as caught:
            reason = str(caught)
    assert script.seen == [f"Bearer {secret}"]
    assert "No good" in reason
    assert secret not in reason


@pytest.mark.parametrize(
    "trouble",
    [
        *([error(status), error(status)] for status in (429, 502, 503, 504)),
        [Say(drop=True), error(503), error(429)],
        [Say(500, b"Internal Server Error", "text/plain")],
    ],
    ids=["429", "502", "503", "504", "a broken connection", "a proxy's 500"],
)
def test_what_passes_is_tried_again(trouble: list[Say]) -> None:
    script = Script(*trouble, Say())
    np.testing.assert_array_equal(asked(script).rewards, PART.rewards)
    assert len(script.seen) == len(trouble) + 1


@pytest.mark.parametrize(
    ("say", "deadline_s", "reason", "tries"),
    [
        (error(503), 20.0, "4 tries", 4),
        (error(429, retry_after_s=60.0), 5.0, "5 s", 1),
        (Say(wait_s=5.0), 0.5, "0.5 s", 1),
    ],
    ids=["tries", "a wait beyond the deadline", "a slow answer"],
)
def test_tries_and_the_deadline_are_kept(say: Say, deadline_s: float, reason: str, tries: int) -> None:
    script = Script(say)
    started = time.monotonic()
    assert reason in refused(script, deadline_s)
    assert time.monotonic() - started < 3.0
    assert len(script.seen) == tries


def test_nobody_there_is_an_error_by_the_deadline() -> None:
    with pytest.raises(RewardError, match="4 tries"):
        HttpReward("http://127.0.0.1:9/x", deadline_s=10.0, retrying=QUICK).score("a", PIXELS)


@pytest.mark.parametrize("then", [Say(drop=True), error(503)], ids=["breaks again", "not back in time"])
def test_a_group_that_may_have_killed_its_server_is_lost_after_a_few_tries(then: Say) -> None:
    script = Script(Say(drop=True), then)
    with pytest.raises(LostGroupError):
        asked(script)
    assert len(script.seen) == (2 if then.drop else 4)


def test_a_group_whose_scorer_died_is_lost_at_once() -> None:
    script = Script(error(503), error(503, "it died", code="lost"), Say())
    with pytest.raises(LostGroupError, match="it died"):
        asked(script)
    assert len(script.seen) == 2


@pytest.mark.parametrize("late", [error(503), Say(wait_s=5.0)], ids=["busy", "late"])
def test_a_group_that_nobody_answers_is_not_lost(late: Say) -> None:
    with scripted(Script(late)) as url, pytest.raises(UnansweredError):
        HttpReward(url, NO_TOKEN, 0.5, retrying=QUICK).score("a", PIXELS)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422, 500])
def test_an_error_that_lasts_is_not_tried_again(status: int) -> None:
    script = Script(error(status, "that is wrong"))
    reason = refused(script)
    assert str(status) in reason
    assert "that is wrong" in reason
    assert len(script.seen) == 1


def test_retry_after_is_waited_for() -> None:
    script = Script(error(429, retry_after_s=0.4), Say())
    started = time.monotonic()
    asked(script)
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize(
    ("headers", "retry_after_s"),
    [
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({}, 1e300),
    ],
)
def test_a_senseless_retry_after_is_not_waited_for(
    headers: dict[str, str], retry_after_s: float | None
) -> None:
    script = Script(replace(error(429, retry_after_s=retry_after_s), headers=headers), Say())
    started = time.monotonic()
    asked(script)
    assert time.monotonic() - started < 3.0


def test_an_event_loop_asks_many_groups_at_once() -> None:
    async def ask(url: str) -> list[Reply]:
        client = AsyncHttpReward(url, deadline_s=20.0)
        try:
            return await asyncio.gather(*(client.score("a", PIXELS) for _ in range(8)))
        finally:
            await client.aclose()

    started = time.monotonic()
    with scripted(Script(Say(wait_s=0.5))) as url:
        replies = asyncio.run(ask(url))
    assert len(replies) == 8
    assert time.monotonic() - started < 3.0


_TWO = RewardScores(np.zeros(2), np.zeros((2, 2)), 0.0, PART.stamp)
_SAYS = {
    "not finite": Say(body=SCORE.replace(b"2.0", b"NaN")),
    "not antisymmetric": Say(body=encode_reply(replace(PART, differences=np.ones((3, 3))), 0.0)),
    "without a version": Say(body=encode_reply(replace(PART, stamp=ScorerStamp("a", "", "")), 0.0)),
    "of two images": Say(body=encode_reply(_TWO, 0.0)),
    "HTML": Say(body=b"<html>", content_type="text/html"),
    "empty": Say(body=b""),
    "no score": Say(body=b"{}"),
    "too long": Say(body=bytes(3 << 20)),
    "packed": Say(body=b"\x1f\x8b" + SCORE, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("what", _SAYS)
def test_an_unsound_answer_is_an_error_and_no_number(what: str) -> None:
    script = Script(_SAYS[what])
    refused(script)
    assert len(script.seen) == 1
    with scripted(Script(_SAYS[what])) as url, pytest.raises(RewardError):
        HttpReward(url).describe()


def test_a_redirect_is_told_and_not_followed() -> None:
    script = Script(Say(307, headers={"Location": "https://elsewhere.example.org/"}))
    assert "https://elsewhere.example.org/" in refused(script)
    assert len(script.seen) == 1


def test_the_token_is_sent_and_nothing_replaces_it(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w") as file:
        file.write("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", netrc)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    script = Script(Say())
    asked(script, token=TOKEN)
    assert script.seen == [f"Bearer {TOKEN.get_secret_value()}"]
