"""The comparison on scores made here; tests/driver/test_standalone.py makes one with a model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError
from common.trajectory import PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.run.suites import Suite, SuitePrompt
from driver.suite_comparison import SuiteComparison, at_guidance
from reward_service.contract import check_scorer
from tests.tiny_config import make_config

CATEGORIES = ("colors", "counting", "colors", "colors")
SCORES = ("reward", "jpeg", "other")


def _evaluation(seed: int) -> Evaluation:
    """4 prompts with 3 images each in each set, scores from the seed."""
    draw = np.random.default_rng(seed).normal
    sets = tuple(
        PromptSetEvaluation(
            name,
            tuple(f"{name} {n}" for n in range(4)),
            {score: draw(size=(4, 3)) for score in SCORES},
            np.zeros((2, 16, 24, 3), np.uint8),
            {score: (score,) for score in SCORES},
        )
        for name in ("seen", "unseen", "mine")
    )
    return Evaluation(0, PolicyStamp(0, "", "run"), sets)


@pytest.fixture
def comparison(tmp_path: Path) -> SuiteComparison:
    config = make_config(tmp_path, tmp_path, {"gold": {"other": {"scorer": "jpeg_incompressibility"}}})
    prompts = tuple(SuitePrompt(n, f"mine {n}", kind, {"n": n}) for n, kind in enumerate(CATEGORIES))
    bases = {guidance: _evaluation(seed) for seed, guidance in enumerate((1.0, 3.0, 5.0))}
    return SuiteComparison(config, "there", Suite("mine", "mine.csv", "d", prompts), _evaluation(9), bases)


def test_each_score_of_the_base_is_at_the_guidance_of_its_highest_mean(comparison: SuiteComparison) -> None:
    best = comparison.base_at_best()
    for place, evaluated in enumerate(best.sets):
        for score in SCORES:
            means = {g: base.sets[place].scores[score].mean() for g, base in comparison.bases.items()}
            assert evaluated.scores[score].mean() == max(means.values())
            assert means[comparison.best_guidances()[evaluated.name][score]] == max(means.values())
    assert len({g for by_score in comparison.best_guidances().values() for g in by_score.values()}) > 1


def test_the_best_of_a_reward_that_is_trained_against_is_the_lowest(comparison: SuiteComparison) -> None:
    entry = comparison.config.rewards["jpeg"].model_copy(update={"weight": -1.0})
    against = replace(comparison, config=comparison.config.model_copy(update={"rewards": {"jpeg": entry}}))
    means = [base.sets[-1].scores["jpeg"].mean() for base in comparison.bases.values()]
    assert against.base_at_best().sets[-1].scores["jpeg"].mean() == min(means)


def test_differences_are_the_trained_model_s_from_the_baseline_by_set_and_category(
    comparison: SuiteComparison,
) -> None:
    base, trained = comparison.bases[1.0], comparison.trained
    for change in comparison.changes(base):
        after, before = (e.of(change.set_name).scores[change.score].mean() for e in (trained, base))  # type: ignore[union-attr]
        assert change.difference is not None
        assert change.difference.mean == pytest.approx(after - before)
    found = {(c.set_name, c.score): c for c in comparison.changes_by_category(base)}
    assert {name for name, _ in found} == {"mine: colors", "mine: counting"}
    assert found["mine: colors", "other"].prompts == 3
    colors = trained.sets[-1].scores["other"][[0, 2, 3]]
    assert found["mine: colors", "other"].after.mean == pytest.approx(colors.mean())


def test_results_are_plain_json_with_the_settings(comparison: SuiteComparison) -> None:
    result = json.loads(json.dumps(comparison.result(), allow_nan=False))
    settings = result["settings"]
    assert (settings["height"], settings["width"], settings["steps"]) == (16, 24, 4)
    assert (settings["guidance"], settings["base_guidances"]) == (1.0, [1.0, 3.0, 5.0])
    assert settings["seed"] == comparison.config.evaluation.seed
    scores = comparison.trained.sets[-1].scores["jpeg"]
    overall = (scores[[0, 2, 3]].mean() + scores[1].mean()) / 2
    assert result["scores"]["trained"]["mean_of_categories"]["jpeg"] == pytest.approx(overall)
    assert result["scores"]["base at 3"]["mine: counting"]["jpeg"]["half_width"] is None
    lines = list(map(json.loads, comparison.prompt_lines().splitlines()))
    assert [(line["prompt"], line["metadata"]) for line in lines] == [
        (f"mine {n}", {"n": n}) for n in range(4)
    ]
    np.testing.assert_array_equal([line["scores"]["trained"]["jpeg"] for line in lines], scores)


def test_guidance_is_checked_like_any_setting(comparison: SuiteComparison) -> None:
    changed = at_guidance(comparison.config, 3.5)
    assert changed.sampling.guidance_scale == 3.5
    assert at_guidance(changed, 1.0) == comparison.config
    with pytest.raises(ConfigError, match="guidance_scale"):
        at_guidance(comparison.config, 0.5)


def test_the_page_s_geneval_reward_asks_the_repository_s_evaluator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("prompts", "evaluation"):
        (tmp_path / folder).mkdir()
    rows = [
        {"tag": "colors", "prompt": f"a {color} cat", "least": least}
        for color, least in (("red", 9), ("dim", 0))
    ]
    (tmp_path / "prompts/evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "evaluation/evaluate_images.py").write_text(
        "import sys\nfrom PIL import Image\n"
        "def parse_args():\n    return sys.argv[1:]\n"
        "def load_models(args):\n    assert args[-1] == 'weights'\n"
        "    return 'detector', (1, 2, 3), ['cat']\n"
        "def evaluate_image(file, metadata):\n"
        "    assert object_detector == 'detector' and COUNTING_THRESHOLD == 0.9\n"
        "    return {'correct': Image.open(file).getpixel((0, 0))[0] >= metadata['least']}\n"
    )
    names: dict[str, Any] = {}
    monkeypatch.setattr("sys.path", [*sys.path])
    page = Path("docs/evaluation.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], names)
    images = np.full((3, 8, 8, 3), 5, np.uint8)
    images[1] = 9
    reward = names["GenEval"](str(tmp_path), "weights")
    scores = reward.score(["a red cat", "a red cat", "a dim cat"], images)
    np.testing.assert_array_equal(scores, [0.0, 1.0, 1.0])
    check_scorer(reward, list(reward.check_prompts), images[:2])


def test_a_suite_without_categories_and_one_guidance_leave_their_tables_out(
    comparison: SuiteComparison,
) -> None:
    plain = tuple(replace(prompt, category="") for prompt in comparison.suite.prompts)
    bases = {1.0: comparison.bases[1.0]}
    small = replace(comparison, suite=replace(comparison.suite, prompts=plain), bases=bases)
    assert small.changes_by_category(small.bases[1.0]) == ()
    assert list(small.baselines().values()) == [small.bases[1.0]]
    tables = [one.markdown().count("| --- |") for one in (small, comparison)]
    assert tables == [2, 6]
