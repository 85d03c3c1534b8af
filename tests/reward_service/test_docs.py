"""docs/rewards.md says what the code does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from common.config.services import RewardServiceSection, RewardSpec
from reward_service.contract import check_scorer
from reward_service.registry import check_spec
from reward_service.scorers import SHIPPED

TEXT = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_scorers_of_the_text_keep_the_contract(pictures: Callable[[int, int], NDArray[np.uint8]]) -> None:
    pointwise, pairwise, usage = blocks("python")
    names: dict[str, Any] = {
        "votes": lambda prompt, images: np.tri(len(images)) * 0.0,
        "pictures": pictures(0, 3),
    }
    for source in (pointwise, pairwise, usage):
        exec(source, names)
    check_scorer(names["Judge"](), ["a cat"] * 3, pictures(1, 3))


def test_the_settings_of_the_text_are_the_defaults() -> None:
    (settings,) = [yaml.safe_load(block) for block in blocks("yaml") if block.startswith("reward_service:")]
    stated = settings["reward_service"]
    assert RewardServiceSection.model_validate(stated) == RewardServiceSection()
    assert set(stated) == set(RewardServiceSection.model_fields)


def test_the_rewards_of_the_text_are_valid(tmp_path: Path) -> None:
    documents = [yaml.safe_load(block) for block in blocks("yaml")]
    specs = [
        RewardSpec.model_validate(spec)
        for document in documents
        for section in ("rewards", "gold")
        for spec in document.get(section, {}).values()
    ]
    assert len(specs) == 5
    for spec in specs:
        if spec.scorer == "jpeg_compressibility":
            check_spec(spec)
        else:
            assert spec.scorer in {"clip", "my_rewards:Redness"}


def test_every_shipped_scorer_is_in_the_table() -> None:
    for name in SHIPPED:
        assert f"| `{name}` |" in TEXT
