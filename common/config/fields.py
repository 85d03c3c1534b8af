"""The base of every configuration section: frozen, unknown keys refused, each field with its unit."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of settings. Unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def setting(default: Any, unit: str, description: str, **limits: Any) -> Any:
    """One setting: its default (... = required), its unit ("" where it has none), what it does, and its limits."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **limits)
