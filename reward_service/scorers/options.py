"""The base of shipped scorers with options: a pydantic model reads them before any weights are read."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar, cast

from common.config.fields import Section
from common.errors import ConfigError, RewardError
from reward_service.contract.settings import read_section

OptionsT = TypeVar("OptionsT", bound=Section)


class Configured(Generic[OptionsT]):
    """A scorer with options. name: in errors. model: of the options; constructors read nothing else."""

    name: ClassVar[str]
    model: ClassVar[type[Section]]

    def __init__(self, **options: Any) -> None:
        try:
            read = read_section(self.model, options, f"{self.name} options")
        except ConfigError as error:
            raise RewardError(str(error)) from error
        self.options: OptionsT = cast(OptionsT, read)

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raises RewardError where the options cannot work, as far as can be told without reading weights."""
        cls(**options).check()

    def check(self) -> None:
        """Raises RewardError where the files or addresses that the options name cannot be right."""
