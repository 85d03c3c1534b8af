"""The description of a run: what a person reads first, and that images and settings are there."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from common.config.load import config_from_yaml_text
from common.config.schema import Config
from common.trajectory import PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.report.intervals import ScoreChange, compare
from driver.report.run_page import artifact_address, describe_run

YAML = """
model: {path: models/tiny-sd}
prompts: {train: train.txt, unseen: unseen.txt}
rewards: {proxy: {scorer: clip}, size: {scorer: jpeg, weight: -0.5}}
"""


def config(gold: str = "gold: {judge: {scorer: clip}}") -> Config:
    return config_from_yaml_text(f"{YAML}{gold}\n")


def changes(gain: float) -> tuple[ScoreChange, ...]:
    rng = np.random.default_rng(0)
    before = {name: rng.normal(size=(16, 2)) for name in ("reward", "proxy", "size", "judge")}
    after = {name: values + gain + 0.1 * rng.normal(size=(16, 2)) for name, values in before.items()}
    evaluations = (
        Evaluation(
            epoch,
            PolicyStamp(epoch, "d" * 64, "run"),
            tuple(
                PromptSetEvaluation(
                    name, tuple(map(str, range(16))), scores, np.zeros((1, 8, 8, 3), dtype=np.uint8)
                )
                for name in ("seen", "unseen")
            ),
        )
        for epoch, scores in ((0, before), (7, after))
    )
    return compare(*evaluations)


@pytest.mark.parametrize(("gold", "score"), [("gold: {judge: {scorer: clip}}", "judge"), ("", "reward")])
def test_the_result_on_unseen_prompts_comes_first(gold: str, score: str) -> None:
    first, *_ = describe_run(config(gold), 7, changes(0.5), "abc").splitlines()
    assert first.startswith(f"**{score} on 16 unseen prompts: ")
    assert first.endswith("** after 7 epochs")


def test_an_artifact_address_can_be_read_back() -> None:
    address = urlsplit(artifact_address("abc", "before_after/unseen prompts & more.png"))
    assert " " not in address.query
    assert parse_qs(address.query) == {
        "path": ["before_after/unseen prompts & more.png"],
        "run_uuid": ["abc"],
    }
