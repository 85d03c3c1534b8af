"""--help: every setting of the tree, readable in 110 columns, and quickly."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from common.config.help import help_text
from common.config.objectives import (
    DdpoSection,
    DpokSection,
    GrpoSection,
    NftSection,
    PrdpSection,
    RaftSection,
    RebelSection,
    RwrSection,
)
from common.config.schema import Config
from common.config.services import REWARD_FORMS
from common.config.training import DdimSampler, FixedWindow, FullPolicy, LoraPolicy, MovingWindow
from common.config.tree import about, fields, tree_of

TEXT = help_text("python train.py CONFIG.yaml [key=value ...]", {"--checkpoint": "folder of a checkpoint"})


def _settings(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    """Fields by dotted key, found without the code under test; the sections that nest are spelt out."""
    nested = {"policy", "objective", "rewards", "gold", "sampler", "window"}
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found |= _settings(info.annotation, f"{prefix}{name}.")
        elif name not in nested:
            found[prefix + name] = info
    return found


EVERY = [
    *_settings(Config, "").items(),
    *_settings(LoraPolicy, "policy.").items(),
    *_settings(FullPolicy, "policy.").items(),
    *_settings(PrdpSection, "objective.").items(),
    *_settings(RebelSection, "objective.").items(),
    *_settings(DdpoSection, "objective.").items(),
    *_settings(GrpoSection, "objective.").items(),
    *_settings(DpokSection, "objective.").items(),
    *_settings(RwrSection, "objective.").items(),
    *_settings(RaftSection, "objective.").items(),
    *_settings(NftSection, "objective.").items(),
    *_settings(DdimSampler, "sampling.sampler.").items(),
    *_settings(FixedWindow, "sampling.window.").items(),
    *_settings(MovingWindow, "sampling.window.").items(),
    *{
        key: info
        for section in ("rewards", "gold")
        for form in REWARD_FORMS.values()
        for key, info in _settings(form, f"{section}.NAME.").items()
    }.items(),
]


@pytest.mark.parametrize(("key", "info"), EVERY)
def test_every_setting_is_there_with_default_unit_limits_and_meaning(key: str, info: Any) -> None:
    name = f"{key}.NAME" if "dict" in str(info.annotation) else key
    lines = TEXT.splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith(f"  {name} ")]
    every = [" ".join(line.strip() for line in lines[place : place + 4]) for place in places]
    # Two kinds may have settings of one name.
    meaning = (info.description or "").split(";")[0][:60]
    shown = next(text for text in every if meaning in text)
    if info.is_required():
        assert f"{name} required" in shown
    elif isinstance(info.default, bool):
        assert f"{name} = {str(info.default).lower()}" in shown
    elif isinstance(info.default, int | float):
        assert f"{name} = {info.default}" in shown
    unit = (info.json_schema_extra or {}).get("unit", "")
    assert not unit or f"[{unit}]" in shown
    for limit in info.metadata:
        if type(limit).__name__ in ("Ge", "Gt", "Le", "Lt"):
            (value,) = (getattr(limit, word) for word in ("ge", "gt", "le", "lt") if hasattr(limit, word))
            assert str(value) in shown


def test_no_word_of_it_is_a_docstring() -> None:
    """python -OO leaves those out."""
    done = subprocess.run(
        [sys.executable, "-OO", "-c", "from common.config.help import help_text; print(help_text('', {}))"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == help_text("", {}).splitlines(), done.stderr
    for name, node in fields(tree_of(Config)).items():
        assert about(node).endswith("."), f"{name} needs a title"


def test_it_fits_the_terminal() -> None:
    assert max(map(len, TEXT.splitlines())) <= 110


def test_the_command_prints_it_in_under_a_second() -> None:
    """Seconds of processor time, because other programs may share the processor."""
    root = Path(__file__).parents[3]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=root, capture_output=True, text=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "sampling.steps = 50 [steps]" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
