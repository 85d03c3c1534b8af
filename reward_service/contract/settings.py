"""Settings of one served reward: all of them may change while it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import field_validator

from common.config.fields import Section, setting
from common.config.problems import validate
from common.config.services import BatchSection, RewardServiceSection, RewardSpec, ScorerSection
from common.config.tree import show
from common.errors import ConfigError
from common.hidden import without_secrets

S = TypeVar("S", bound=Section)

LONGEST_VERSION_LABEL = 60
"""In characters."""


class ServedReward(BatchSection, ScorerSection):
    """One reward of the service. As a Serve deployment's `user_config` it changes without a restart."""

    version: str = setting(
        "", "", "A label of your own, joined to the scorer's version; change it to load changed files."
    )
    threads: int = setting(1, "threads", "CPU threads of the scorer (torch).", ge=1)
    probe_idle_s: float = setting(
        30.0, "s", "Idle time after which the health check makes a forward pass; 0 = never.", ge=0.0
    )
    queue_groups: int = setting(64, "groups", "Groups that wait at each replica, at most.", ge=1)
    shadow_app: str = setting("", "", "Serve application that scores groups too, for the log; empty = none.")
    shadow_wait_s: float = setting(1.0, "s", "Longest wait for it beyond the own score.", ge=0.0, le=600.0)

    @field_validator("version")
    @classmethod
    def _a_label(cls, value: str) -> str:
        if len(value) > LONGEST_VERSION_LABEL or not re.fullmatch(r"[A-Za-z0-9._-]*", value):
            allowed = f"up to {LONGEST_VERSION_LABEL} letters, digits, '.', '_' and '-'"
            raise ValueError(f"{value!r} cannot be a label; use {allowed}")
        return value

    def same_scorer(self, other: ServedReward) -> bool:
        """Whether both ask for the same scorer, so that it need not be built again."""
        return _scorer_of(self) == _scorer_of(other)

    def without_secrets(self) -> dict[str, Any]:
        """All settings as plain values; options that are named like secrets are hidden, nested ones too."""
        return self.model_dump(mode="json") | {"options": without_secrets(self.options)}


def served_settings(spec: RewardSpec, section: RewardServiceSection) -> ServedReward:
    """The settings of the application that a run starts for an embedded reward."""
    scorer = spec.model_dump(include=set(ScorerSection.model_fields))
    shared = section.model_dump(include={"threads", "queue_groups", *BatchSection.model_fields})
    return ServedReward.model_validate({**scorer, **shared})


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
