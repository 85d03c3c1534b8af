"""Judges behind a real HTTP server: what they are asked, what becomes of their answers, and of failures."""

from __future__ import annotations

import gzip
import json
import logging
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.pairs import plan_pairs
from reward_service.contract.reward import check_scorer
from reward_service.scorers.vlm import VlmPairs, VlmRubric
from tests.reward_service.judge_server import Judge, Question, serving

FAULT_429 = (429, {"Retry-After": "1"}, b'{"error": {"message": "slow down"}}')
FAULT_500 = (500, {}, b"oops")


def greys(*values: int) -> NDArray[np.uint8]:
    return np.stack([np.full((8, 8, 3), value, np.uint8) for value in values])


def brightness(question: Question) -> str:
    return json.dumps({"score": round(float(question.images[0].mean()) / 25.5, 3)})


def brighter(question: Question) -> str:
    first, second = (float(image.mean()) for image in question.images)
    return json.dumps({"better": "same" if first == second else "first" if first > second else "second"})


def says(text: str) -> Callable[[Question], str]:
    return lambda question: text


def rubric(url: str, **options: Any) -> VlmRubric:
    VlmRubric.check_options(base_url=url, model="judge-1", **options)
    return VlmRubric(base_url=url, model="judge-1", **options)


def pairs_judge(url: str, **options: Any) -> VlmPairs:
    VlmPairs.check_options(base_url=url, model="judge-1", **options)
    return VlmPairs(base_url=url, model="judge-1", **options)


def test_a_rubric_gives_each_image_its_number() -> None:
    judge = Judge(brightness)
    with serving(judge) as url:
        scorer = rubric(url, rubric="How bright is it?", max_tokens=20)
        scores = scorer.score(["a", "b", "c"], greys(0, 102, 255))
    assert scores.tolist() == [0.0, 4.0, 10.0]
    asked = {question.texts.split("Prompt: ")[1][:3]: question for question in judge.asked}
    assert sorted(asked) == ['"a"', '"b"', '"c"']
    assert asked['"b"'].images[0].mean() == 102
    assert "How bright is it?" in asked['"a"'].texts
    body = asked['"a"'].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0.0, 20)
    assert "authorization" not in asked['"a"'].headers


def test_a_judge_keeps_the_contract() -> None:
    with serving(Judge(brightness)) as url:
        check_scorer(rubric(url), ["a", "b", "a"], greys(10, 90, 200))
    with serving(Judge(brighter)) as url:
        check_scorer(pairs_judge(url), ["a", "a", "a"], greys(10, 90, 200))


def test_pairs_are_asked_in_both_orders() -> None:
    judge = Judge(brighter)
    with serving(judge) as url:
        answers = pairs_judge(url).compare_pairs("x", greys(10, 90, 90), np.array([[0, 1], [1, 2], [2, 0]]))
    assert answers.tolist() == [-1.0, 0.0, 1.0]
    shown = sorted(tuple(int(image.mean()) for image in question.images) for question in judge.asked)
    assert shown == [(10, 90), (10, 90), (90, 10), (90, 10), (90, 90), (90, 90)]


def test_a_judge_that_only_sees_the_place_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Judge(says('{"better": "first"}'))) as url, caplog.at_level(logging.INFO, "ray.serve"):
        scorer = pairs_judge(url)
        pairs = plan_pairs(9, 0, 0)
        answers = scorer.compare_pairs("x", greys(*range(0, 90, 10)), pairs)
    assert not answers.any()
    (record,) = [record for record in caplog.records if "leans" in record.message]
    assert "leans +1.00 to the first place over 36 pairs" in record.message
    assert record.levelno == logging.WARNING


def test_a_judge_undecided_in_one_order_counts_half(caplog: pytest.LogCaptureFixture) -> None:
    def shy(question: Question) -> str:
        first, second = (float(image.mean()) for image in question.images)
        return brighter(question) if first < second else '{"better": "same"}'

    with serving(Judge(shy)) as url, caplog.at_level(logging.INFO, "ray.serve"):
        scorer = pairs_judge(url)
        assert scorer.compare_pairs("x", greys(10, 90), np.array([[1, 0], [0, 1]])).tolist() == [0.5, -0.5]
    assert "leans -0.50 to the first place over 2 pairs" in caplog.text


@pytest.mark.parametrize(
    ("answer", "finish_reason"), [("nice!", "stop"), ('{"score": 12}', "stop"), ('{"score": 8}', "length")]
)
def test_an_answer_that_is_malformed_or_cut_off_is_a_failure_not_a_number(
    answer: str, finish_reason: str
) -> None:
    judge = Judge(says(answer), finish_reason=finish_reason)
    with serving(judge) as url, pytest.raises(RewardError):
        rubric(url).score(["a"], greys(1))


@pytest.mark.parametrize(
    ("judge", "options", "reason", "requests"),
    [
        (Judge(brightness, faults=[FAULT_500] * 9), {"tries": 2}, "500", 2),
        (Judge(brightness, faults=[(429, {"Retry-After": "30"}, b"slow down")]), {}, "deadline_s", 1),
        (Judge(brightness, slow_s=3.0), {}, "deadline_s", 1),
    ],
    ids=["faults that stay", "a long Retry-After", "hanging"],
)
def test_tries_and_the_deadline_are_kept(
    judge: Judge, options: dict[str, Any], reason: str, requests: int
) -> None:
    with serving(judge) as url:
        started = time.monotonic()
        with pytest.raises(RewardError, match=reason):
            rubric(url, deadline_s=1.5, **options).score(["a"], greys(51))
        assert time.monotonic() - started < 2.9
    assert len(judge.asked) == requests


def test_faults_that_pass_are_waited_out() -> None:
    judge = Judge(brightness, faults=[FAULT_429, FAULT_500])
    with serving(judge) as url:
        started = time.monotonic()
        assert rubric(url).score(["a"], greys(51)).tolist() == [2.0]
    assert len(judge.asked) == 3
    assert time.monotonic() - started > 1.0  # the Retry-After


@pytest.mark.parametrize(
    "fault",
    [
        (401, {}, b'{"error": "bad key"}'),
        (307, {"Location": "http://127.0.0.1:1/"}, b""),
        (200, {}, b"<html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
        (200, {}, b" " * (2 << 20) + b'{"choices": [{"message": {"content": "x"}}]}'),
    ],
    ids=lambda fault: str(fault[2][:30]),
)
def test_what_no_further_try_mends_fails_at_once(fault: Any) -> None:
    judge = Judge(brightness, faults=[fault])
    with serving(judge) as url, pytest.raises(RewardError):
        rubric(url).score(["a"], greys(51))
    assert len(judge.asked) == 1


def test_a_compressed_answer_is_refused_and_not_inflated() -> None:
    swollen = gzip.compress(bytes(64 << 20))
    judge = Judge(brightness, faults=[(200, {"Content-Encoding": "gzip"}, swollen)])
    with serving(judge) as url:
        scorer = rubric(url)
        tracemalloc.start()
        try:
            with pytest.raises(RewardError):
                scorer.score(["a"], greys(51))
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert judge.asked[0].headers["accept-encoding"] == "identity"
    assert most_bytes < 8 << 20


def test_requests_at_once_are_bounded() -> None:
    judge = Judge(brightness, slow_s=0.05)
    with serving(judge) as url:
        scorer = rubric(url, concurrency=3)
        scorer.score(["a"] * 12, greys(*range(12)))
    assert judge.most_at_once == 3


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-0123456789")
    judge = Judge(brightness, faults=[(401, {}, b"no")])
    with serving(judge) as url:
        scorer = rubric(url, api_key_env="JUDGE_KEY")
        with pytest.raises(RewardError) as failure:
            scorer.score(["a"], greys(1))
    assert judge.asked[0].headers["authorization"] == "Bearer sk-secret-0123456789"
    assert "secret-0123" not in str(failure.value) + repr(vars(scorer))
    with pytest.raises(RewardError, match="unencrypted"):
        rubric("http://judge.example/v1", api_key_env="JUDGE_KEY").score(["a"], greys(1))
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(RewardError, match="JUDGE_KEY"):
        rubric(url, api_key_env="JUDGE_KEY").score(["a"], greys(1))


def test_extra_body_adds_and_takes_out() -> None:
    judge = Judge(brightness)
    with serving(judge) as url:
        rubric(url, extra_body='{"max_tokens": null, "seed": 3}').score(["a"], greys(1))
    assert "max_tokens" not in judge.asked[0].body
    assert judge.asked[0].body["seed"] == 3


def test_determinism_is_declared_by_temperature() -> None:
    url = "http://127.0.0.1:9/v1"
    assert rubric(url).deterministic
    assert not rubric(url, temperature=0.7).deterministic
    assert not pairs_judge(url, repeatable=False).deterministic


def test_digest_follows_what_decides_the_answers() -> None:
    url = "http://127.0.0.1:9/v1"
    assert rubric(url).digest == rubric("http://127.0.0.1:8/v1", concurrency=2, timeout_s=3.0).digest
    changes: list[dict[str, Any]] = [{}, {"rubric": "?"}, {"highest": 5.0}, {"temperature": 0.5}]
    assert len({rubric(url, **options).digest for options in changes}) == 4
