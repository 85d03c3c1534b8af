"""Settings of a served reward: every wrong one is told, with what was meant."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from reward_service.contract.settings import ServedReward, read_settings
from reward_service.serve import build


def test_all_problems_are_told_at_once_with_the_nearest_names() -> None:
    given = {"scorre": "clip", "timeout_s": "5", "max_batch_groups": 0}
    with pytest.raises(ConfigError) as caught:
        read_settings(given, "user_config")
    lines = str(caught.value).splitlines()
    assert lines[0] == "user_config: 4 problems"
    text = str(caught.value)
    assert "scorer: missing" in text
    assert "did you mean scorer?" in text
    assert 'timeout_s: got "5"; allowed: number' in text
    assert "max_batch_groups: got 0; allowed: whole number, at least 1" in text


@pytest.mark.parametrize("given", [[], "clip", 3])
def test_what_is_no_mapping_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="must hold settings"):
        read_settings(given, "user_config")  # type: ignore[arg-type]


def test_a_label_must_fit_into_a_stamp() -> None:
    with pytest.raises(ConfigError, match="cannot be a label"):
        read_settings({"scorer": "clip", "version": "a b"}, "user_config")


def test_only_what_changes_the_scorer_asks_for_a_new_one() -> None:
    base = ServedReward(scorer="clip", options={"path": "a"})
    for same in ({"timeout_s": 1.0}, {"threads": 2}, {"max_batch_groups": 9}, {"shadow_app": "other"}):
        assert base.same_scorer(base.model_copy(update=same))
    for other in ({"scorer": "jpeg"}, {"options": {"path": "b"}}, {"version": "2"}, {"pairs": 3}):
        assert not base.same_scorer(base.model_copy(update=other))


def test_options_named_like_secrets_are_not_shown() -> None:
    options = {"api_key": "k", "TOKEN": "t", "token_env": "JUDGE_TOKEN", "path": "p", "max_tokens": 5}
    shown = ServedReward(scorer="mine:Judge", options=options).without_secrets()["options"]
    assert shown == {
        "api_key": "(hidden)",
        "TOKEN": "(hidden)",
        "token_env": "JUDGE_TOKEN",
        "path": "p",
        "max_tokens": 5,
    }


@pytest.mark.parametrize("value", [["sk-of-the-tests"], {"inner": "sk-of-the-tests"}])
def test_a_problem_does_not_show_a_secret(value: object) -> None:
    with pytest.raises(ConfigError, match=r"options\.api_key: got .*hidden") as caught:
        read_settings({"scorer": "mine:Judge", "options": {"api_key": value}}, "user_config")
    assert "sk-of-the-tests" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read_settings([{"api_key": value}], "user_config")  # type: ignore[arg-type]
    assert "sk-of-the-tests" not in str(caught.value)


def test_arguments_of_an_application_are_checked_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="did you mean http"):
        build({"name": "clip", "htpp": True})
    with pytest.raises(ConfigError, match="name: missing"):
        build({})
    with pytest.raises(ConfigError, match="cannot be a reward's name"):
        build({"name": "a/b"})
    with pytest.raises(ConfigError, match=r"limits\.image: unknown key; did you mean limits\.images"):
        build({"name": "clip", "limits": {"image": 3}})
