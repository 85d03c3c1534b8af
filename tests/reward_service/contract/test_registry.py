"""From the configuration to a scorer, and every refusal on the way."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

import pytest

from common.config.services import RewardSpec
from common.errors import RewardError
from reward_service.contract.registry import build_scorer, check_spec
from reward_service.contract.reward import methods_of
from reward_service.scorers import SHIPPED
from reward_service.scorers.jpeg import JpegCompressibility
from tests.reward_service.scorers import PromptLength

Options = dict[str, str | int | float | bool]
SCORERS = "tests.reward_service.scorers"


class NoDigest:
    """Has no digest."""

    version = "1"

    def score(self, prompts: list[str], images: object) -> list[float]:
        return [0.0] * len(prompts)


class NumberVersion(NoDigest):
    """Sets version and digest when it is built, the version not as text."""

    def __init__(self) -> None:
        self.version = 3  # type: ignore[assignment]
        self.digest = ""


class NumberOfTheClass(NoDigest):
    """Its version is a number."""

    version = 1  # type: ignore[assignment]
    digest = ""


class EmptyVersion(NoDigest):
    """Would be refused by whoever reads its scores."""

    version = ""
    digest = ""


class LongVersion(EmptyVersion):
    """Its stamp would be, too."""

    version = "x" * 1000


class OneText(NoDigest):
    """Gives its check_prompts as one text."""

    digest = ""
    check_prompts = "a cat"


class Picky(NoDigest):
    """Refuses an option before it is built."""

    digest = ""

    def __init__(self, temperature: float = 1.0) -> None:
        raise AssertionError("must not be built to be checked")

    @staticmethod
    def check_options(temperature: float = 1.0) -> None:
        if temperature <= 0.0:
            raise RewardError(f"temperature must be above 0, got {temperature}.")


class Keyed(NoDigest):
    """Is built with a key, and tells it to whoever reads its errors."""

    digest = ""

    def __init__(self, api_key: str, parts: str = "") -> None:
        raise OSError(f"401 for {api_key}, {parts}")

    @staticmethod
    def check_options(api_key: str, parts: str = "") -> None:
        if parts == "none":
            raise RewardError(f"the key {api_key} is of no use without parts")


def test_every_shipped_name_leads_to_a_class() -> None:
    for name, path in SHIPPED.items():
        module, _, class_name = path.partition(":")
        assert len(methods_of(vars(importlib.import_module(module))[class_name])) == 1, name


def test_options_reach_the_constructor() -> None:
    scorer = build_scorer(RewardSpec(scorer=f"{SCORERS}:PromptLength", options={"scale": 3.0}))
    assert isinstance(scorer, PromptLength)
    assert scorer.scale == 3.0
    assert isinstance(build_scorer(RewardSpec(scorer="jpeg_compressibility")), JpegCompressibility)


@pytest.mark.parametrize(
    ("scorer", "options", "complaint"),
    [
        ("jpeg_compresibility", {}, "'jpeg_compressibility'"),
        ("zzz", {}, "'clip', .*'jpeg_incompressibility'"),
        ("no_such_package.scorers:Mine", {}, "'no_such_package.scorers'"),
        (f"{SCORERS}:Rednes", {}, "'Redness'"),
        (f"{SCORERS}:np", {}, "'np'"),
        (f"{SCORERS}:Images", {}, "Images"),
        (f"{__name__}:NoDigest", {}, "digest"),
        (f"{__name__}:NumberOfTheClass", {}, "version.*'1'"),
        (f"{SCORERS}:PromptLength", {"scael": 1.0}, "'scael'.*scale: .*float.* = 1.0"),
        (f"{SCORERS}:Redness", {"scale": 1.0}, "scale"),
        (f"{__name__}:Picky", {"temperature": 0.0}, "temperature"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_built(
    scorer: str, options: Options, complaint: str
) -> None:
    check_spec(RewardSpec(scorer=f"{__name__}:Picky", options={"temperature": 2.0}))
    with pytest.raises(RewardError, match=complaint):
        check_spec(RewardSpec(scorer=scorer, options=options))


@pytest.mark.parametrize(
    ("scorer", "complaint"),
    [
        (f"{SCORERS}:Unbuildable", "no such model"),
        (f"{__name__}:NumberVersion", "version"),
        (f"{__name__}:EmptyVersion", "version has 0 characters; allowed: 1 to "),
        (f"{__name__}:LongVersion", "version has 1000 characters; allowed: 1 to "),
        (f"{__name__}:OneText", "check_prompts"),
    ],
)
def test_errors_of_the_constructor_and_bad_stamps_are_named(scorer: str, complaint: str) -> None:
    with pytest.raises(RewardError, match=complaint):
        build_scorer(RewardSpec(scorer=scorer))


@pytest.mark.parametrize("line", ["import a_package_that_moved", "raise SystemExit('a_package_that_moved')"])
def test_a_module_that_raises_when_imported_says_what_it_raised(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stale_scorer.py").write_text(f"{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError, match="a_package_that_moved"):
        check_spec(RewardSpec(scorer="stale_scorer:Mine"))
    assert "stale_scorer" not in sys.modules


KEY = "sk-of-the-tests"
PARTS = f'{{judge: {{scorer: "mine:Judge", options: {{api_key: {KEY}-2}}}}}}'


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"api_key": KEY}, "OSError"),
        ({"api_key": KEY, "parts": PARTS}, "OSError.*hidden"),
        ({"api_key": KEY, "parts": "none"}, "hidden"),
        ({"api_key": KEY, "prts": PARTS}, "prts.*mine:Judge"),
    ],
)
def test_an_error_does_not_show_a_secret(options: Options, complaint: str) -> None:
    with pytest.raises(RewardError, match=complaint) as caught:
        build_scorer(RewardSpec(scorer=f"{__name__}:Keyed", options=options))
    assert KEY not in "".join(traceback.format_exception(caught.value))
