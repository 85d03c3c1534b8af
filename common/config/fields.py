"""The base of every configuration section: frozen, unknown keys refused, each field with its unit."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator


def _name_shorthand(schema: dict[str, Any], model: type[Section]) -> None:
    schema["shorthand"] = model.shorthand


class Section(BaseModel):
    """A frozen group of settings. Unknown keys, infinities and NaN are errors.

    shorthand: the one field that a plain text in the section's place stands for; "" where there is none.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        json_schema_extra=_name_shorthand,
    )

    shorthand: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, value: object) -> object:
        return {cls.shorthand: value} if cls.shorthand and isinstance(value, str) else value


def setting(default: Any, unit: str, description: str, **limits: Any) -> Any:
    """One setting: its default (... = required), its unit ("" where none), what it does, and its limits.

    Numbers and truth values are taken as they are: neither "5", true nor 5.0 is a whole number.
    """
    strict = True if isinstance(default, bool | int | float) else None
    extra: dict[str, Any] = {"unit": unit}
    return Field(default, description=description, json_schema_extra=extra, strict=strict, **limits)
