"""The table of metrics: unambiguous, and nothing outside it can be reported."""

from __future__ import annotations

import re

import pytest

from common.cluster.metrics import (
    METRICS,
    MetricDefinition,
    check_metrics,
    definition_of,
)

EXAMPLES = {
    "part": "aesthetic",
    "score": "reward",
    "set": "unseen",
    "step": "12",
    "alarm": "bad_numbers",
    "role": "learner",
    "statistic": "clip_share",
}


def instance(name: str) -> str:
    return re.sub(r"<(\w+)>", lambda found: EXAMPLES[found.group(1)], name)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_name_belongs_to_exactly_one_metric(metric: MetricDefinition) -> None:
    assert [other for other in METRICS if other.covers(instance(metric.name))] == [metric]


def test_placeholders_are_read_back() -> None:
    metric = definition_of("eval/unseen/gold clip")
    assert metric.name == "eval/<set>/<score>"
    assert metric.values_in("eval/unseen/gold clip") == {"set": "unseen", "score": "gold clip"}
    assert definition_of("time/learner_busy_s").values_in("time/learner_busy_s") == {"role": "learner"}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("reward/means", "reward/mean"),
        ("eval/held_out/reward", "eval/<set>/<score>"),
        ("time/driver_busy_s", "time/<role>_busy_s"),
        ("optimizer/gradient_norm_step_x", "optimizer/gradient_norm_step_<step>"),
        ("reward/a/b/mean", "reward/<part>/mean"),
    ],
)
def test_an_undefined_name_is_refused_with_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=re.escape(nearest)):
        check_metrics({"reward/mean": 1.0, wrong: 0.0})
