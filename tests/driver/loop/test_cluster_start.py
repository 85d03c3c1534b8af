"""A start of Ray that fails says what to set; one that is late is tried again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from common.config.services import RaySection
from common.errors import ConfigError, PrdpError, StuckError
from driver.loop.cluster import TRIES, start_local


@pytest.mark.parametrize(
    ("error", "tries", "kind", "named"),
    [
        (Exception("The current node timed out during startup."), TRIES, StuckError, "timed out"),
        (TimeoutError("no port"), TRIES, StuckError, "no port"),
        (ValueError("exceeds /dev/shm size"), 1, ConfigError, r"ray\.object_store_gb.*/dev/shm"),
        (OSError(28, "No space left on device"), 1, ConfigError, "No space left"),
    ],
)
def test_a_late_start_is_tried_again_and_a_refusal_is_not(
    monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int, kind: type[PrdpError], named: str
) -> None:
    asked: list[Any] = []

    def init(**options: Any) -> Any:
        asked.append(options)
        raise error

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(kind, match=named) as caught:
        start_local(RaySection())
    assert len(asked) == tries
    assert "\n" not in str(caught.value)


def test_the_second_try_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Exception("late"), SimpleNamespace(address_info={"session_dir": "/s"})])

    def init(**_: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("ray.init", init)
    assert start_local(RaySection()) == {"session_dir": "/s"}
