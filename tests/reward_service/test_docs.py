"""docs/rewards.md and docs/scorers.md say what the code does."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter
from ray.serve.schema import ServeDeploySchema

from common.config.services import RewardEntry, RewardServiceSection, RewardSpec, UrlReward
from reward_service.client.local import local_rewards
from reward_service.contract.reward import check_scorer
from reward_service.contract.settings import read_settings
from reward_service.scorers import SHIPPED

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "rewards.md").read_text(encoding="utf-8")
SCORERS = (DOCS / "scorers.md").read_text(encoding="utf-8")
ENTRY: TypeAdapter[Any] = TypeAdapter(RewardEntry)


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_scorers_of_the_text_keep_the_contract(
    make_images: Callable[[int, int], NDArray[np.uint8]],
) -> None:
    pointwise, pairwise, pairs, usage, *_ = blocks("python")
    names: dict[str, Any] = {
        "votes": lambda prompt, images: np.tri(len(images)) * 0.0,
        "asked": lambda prompt, first, second: float(first.mean() - second.mean()),
        "images": make_images(0, 3),
    }
    for source in (pointwise, pairwise, pairs, usage):
        exec(source, names)
    for judge in ("Judge", "Duel"):
        check_scorer(names[judge](), ["a cat"] * 3, make_images(1, 3))


def test_a_server_of_one_s_own_as_in_the_text_is_a_reward(
    make_images: Callable[[int, int], NDArray[np.uint8]],
) -> None:
    (source,) = [block for block in blocks("python") if "http.server" in block]
    names: dict[str, Any] = {"__name__": "judge"}
    exec(source, names)
    images = make_images(0, 3)
    with names["ThreadingHTTPServer"](("127.0.0.1", 0), names["Judge"]) as server:
        names["Judge"].log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        entry = UrlReward(url=f"http://127.0.0.1:{server.server_port}")
        score = local_rewards({"mine": entry}, {}, RewardServiceSection()).score_group("a cat", images)
        server.shutdown()
    means = images.reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(score.parts["mine"], means)
    np.testing.assert_allclose(score.differences, means[:, None] - means[None, :])


def test_the_settings_of_the_text_are_the_defaults() -> None:
    (settings,) = [yaml.safe_load(block) for block in blocks("yaml") if block.startswith("reward_service:")]
    stated = settings["reward_service"]
    assert RewardServiceSection.model_validate(stated) == RewardServiceSection()
    assert set(stated) == set(RewardServiceSection.model_fields)


def test_the_application_of_the_text_is_what_serve_takes() -> None:
    (block,) = [yaml.safe_load(block) for block in blocks("yaml") if block.startswith("applications:")]
    applications = ServeDeploySchema.model_validate(block).applications
    read_settings(applications[0].deployments[0].user_config or {}, "docs/rewards.md")


@pytest.mark.parametrize(("text", "expected"), [(TEXT, 7), (SCORERS, 5)])
def test_the_rewards_of_the_text_are_valid(text: str, expected: int) -> None:
    entries = [
        ENTRY.validate_python(entry)
        for document in map(yaml.safe_load, blocks("yaml", text))
        for section in ("rewards", "gold")
        for entry in document.get(section, {}).values()
    ]
    assert len(entries) == expected
    for entry in entries:
        if isinstance(entry, RewardSpec):
            assert entry.scorer in {*SHIPPED, "my_rewards:Redness"}


def test_every_shipped_scorer_is_in_the_table() -> None:
    for name in SHIPPED:
        assert f"| `{name}` |" in SCORERS
