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
    problems = str(caught.value).splitlines()[1:]
    assert len(problems) == 4
    for named in ("did you mean scorer", "scorer: missing", "timeout_s", "max_batch_groups"):
        assert any(named in problem for problem in problems)


@pytest.mark.parametrize("given", [[], "clip", 3, {"scorer": "clip", "version": "a label"}])
def test_what_is_no_mapping_or_no_label_is_refused(given: object) -> None:
    with pytest.raises(ConfigError):
        read_settings(given, "user_config")  # type: ignore[arg-type]


def test_only_what_changes_the_scorer_asks_for_a_new_one() -> None:
    base = ServedReward(scorer="clip", options={"path": "a"})
    for same in ({"timeout_s": 1.0}, {"threads": 2}, {"max_batch_groups": 9}, {"shadow_app": "other"}):
        assert base.same_scorer(base.model_copy(update=same))
    for other in ({"scorer": "jpeg"}, {"options": {"path": "b"}}, {"version": "2"}, {"pairs": 3}):
        assert not base.same_scorer(base.model_copy(update=other))


@pytest.mark.parametrize("value", [["sk-of-the-tests"], {"inner": "sk-of-the-tests"}])
def test_a_problem_does_not_show_a_secret(value: object) -> None:
    with pytest.raises(ConfigError, match=r"options\.api_key: got .*hidden") as caught:
        read_settings({"scorer": "mine:Judge", "options": {"api_key": value}}, "user_config")
    assert "sk-of-the-tests" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read_settings([{"api_key": value}], "user_config")  # type: ignore[arg-type]
    assert "sk-of-the-tests" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "clip", "htpp": True}, "http"),
        ({}, "name"),
        ({"name": "a/b"}, "a/b"),
        ({"name": "clip", "limits": {"image": 3}}, r"limits\.images"),
    ],
)
def test_arguments_of_an_application_are_checked_before_anything_starts(
    arguments: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        build(arguments)
