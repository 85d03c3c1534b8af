"""The table of metrics: unambiguous, and nothing outside it can be reported."""

from __future__ import annotations

import re

import pytest

from common.cluster.metrics import (
    METRICS,
    PLACEHOLDERS,
    MetricDefinition,
    MetricKind,
    check_metrics,
    definition_of,
    metrics_markdown,
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


def test_examples_cover_every_placeholder() -> None:
    assert set(EXAMPLES) == set(PLACEHOLDERS)
    assert {name for metric in METRICS for name in metric.placeholders} == set(PLACEHOLDERS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_name_belongs_to_exactly_one_metric(metric: MetricDefinition) -> None:
    assert [other for other in METRICS if other.covers(instance(metric.name))] == [metric]


def test_placeholders_are_read_back() -> None:
    metric = definition_of("eval/unseen/gold clip")
    assert metric.name == "eval/<set>/<score>"
    assert metric.values_in("eval/unseen/gold clip") == {"set": "unseen", "score": "gold clip"}
    assert definition_of("time/learner_busy_s").values_in("time/learner_busy_s") == {"role": "learner"}


def test_values_of_another_metric_are_refused() -> None:
    with pytest.raises(ValueError, match="not an instance"):
        definition_of("reward/mean").values_in("reward/x/mean")


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


def test_a_name_like_no_other_is_refused() -> None:
    with pytest.raises(ValueError, match=r"common/cluster/metrics\.py"):
        check_metrics(["!"])


def test_defined_names_pass() -> None:
    check_metrics({instance(metric.name): 0.0 for metric in METRICS})


def test_amounts_are_counters_and_states_are_gauges() -> None:
    kinds = {metric.name: metric.kind for metric in METRICS}
    assert kinds["faults/dropped_groups"] is MetricKind.COUNTER
    assert kinds["transport/bytes_moved"] is MetricKind.COUNTER
    assert kinds["policy/version"] is MetricKind.GAUGE


def test_markdown_has_a_row_a_metric_and_keeps_its_columns() -> None:
    lines = metrics_markdown().splitlines()
    assert len(lines) == len(METRICS) + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
