"""Settings of one served reward: all of them may change while it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import field_validator

from common.config.fields import Section, setting
from common.config.problems import validate
from common.config.tree import show
from common.errors import ConfigError
from reward_service.contract.hidden import without_secrets

S = TypeVar("S", bound=Section)


class ServedReward(Section):
    """One reward of the service. As a Serve deployment's `user_config` it changes without a restart."""

    scorer: str = setting(..., "", "A shipped scorer's name, or my_package.my_module:MyScorer.", min_length=1)
    options: dict[str, str | int | float | bool] = setting(
        {}, "", "Keyword arguments of the scorer, e.g. {path: folder}."
    )
    version: str = setting(
        "", "", "A label of your own, joined to the scorer's version; change it to load changed files."
    )
    pairs: int = setting(0, "pairs", "Pairs a group that a judge of single pairs is asked; 0 = all.", ge=0)
    threads: int = setting(1, "threads", "CPU threads of the scorer (torch).", ge=1)
    max_batch_groups: int = setting(
        1, "groups", "Groups scored in one call. Above 1, scores depend on their company by rounding.", ge=1
    )
    batch_wait_s: float = setting(0.005, "s", "Longest wait for a batch to fill.", ge=0.0, le=60.0)
    timeout_s: float = setting(120.0, "s", "Longest that the scorer may work on one batch.", gt=0.0)
    probe_idle_s: float = setting(
        30.0, "s", "Idle time after which the health check makes a forward pass; 0 = never.", ge=0.0
    )
    queue_groups: int = setting(64, "groups", "Groups that wait at each replica, at most.", ge=1)
    shadow_app: str = setting("", "", "Serve application that scores groups too, for the log; empty = none.")
    shadow_wait_s: float = setting(1.0, "s", "Longest wait for it beyond the own score.", ge=0.0, le=600.0)

    @field_validator("version")
    @classmethod
    def _a_label(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,60}", value):
            raise ValueError(f"{value!r} cannot be a label; use up to 60 letters, digits, '.', '_' and '-'")
        return value

    def same_scorer(self, other: ServedReward) -> bool:
        """Whether both ask for the same scorer, so that it need not be built again."""
        return _scorer_of(self) == _scorer_of(other)

    def without_secrets(self) -> dict[str, Any]:
        """All settings as plain values; options that are named like secrets are hidden, nested ones too."""
        return self.model_dump(mode="json") | {"options": without_secrets(self.options)}


def read_settings(given: Mapping[str, Any], origin: str) -> ServedReward:
    """Settings from plain values. origin names them in errors.

    Raises ConfigError with every unknown key and impossible value, one a line.
    """
    return read_section(ServedReward, given, origin)


def read_section(model: type[S], given: Mapping[str, Any], origin: str) -> S:
    """A section from plain values. Raises ConfigError with every problem, one a line, and no secret."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{origin} must hold settings (key: value), got {show(without_secrets(given))}.")
    values = {str(key): value for key, value in given.items()}
    return validate(model, values, origin, shown=without_secrets(values))


def _scorer_of(settings: ServedReward) -> tuple[object, ...]:
    return settings.scorer, settings.options, settings.version, settings.pairs
