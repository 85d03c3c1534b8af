"""What a replica notes about its shadow."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from common.trajectory import RewardScores, ScorerStamp
from reward_service.contract.results import Outcome, Reply, RewardFailure
from reward_service.on_ray import shadow as shadow_module
from reward_service.on_ray.shadow import Shadow

PIXELS = np.zeros((1, 4, 4, 3), dtype=np.uint8)


class _Handle:
    """A handle of an application that answers one outcome after the other."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self._outcomes = outcomes

    @property
    def score_alone(self) -> _Handle:
        return self

    async def remote(self, prompt: str, pixels: Any) -> Reply:
        return Reply(self._outcomes.pop(0), 0.1)


def part(version: str) -> RewardScores:
    """Of one image, by a version."""
    return RewardScores(np.zeros(1), np.zeros((1, 1)), 0.0, ScorerStamp("next", version, "d"))


def test_its_stamp_is_logged_where_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes: list[Outcome] = [part("1"), part("1"), RewardFailure("out"), part("1"), part("2"), part("1")]
    handle = _Handle(list(outcomes))
    monkeypatch.setattr(shadow_module, "reward_handle", lambda app: handle)
    logged: list[tuple[str, str]] = []
    monkeypatch.setattr(
        shadow_module.LOGGER, "warning", lambda text, app, stamp: logged.append((app, stamp.version))
    )
    shadow = Shadow()

    async def ask() -> Outcome:
        async with shadow.asked("next", "a cat", PIXELS) as asked:
            return await shadow.say(asked, 10.0)

    assert [asyncio.run(ask()) for _ in outcomes] == outcomes
    assert logged == [("next", "1"), ("next", "2"), ("next", "1")]
