"""The files of a pipeline folder: its JSON, and which weights diffusers and transformers take of a part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ModelError

DIFFUSERS_WEIGHTS = (
    "diffusion_pytorch_model.safetensors.index{variant}.json",
    "diffusion_pytorch_model{variant}.safetensors",
    "diffusion_pytorch_model{variant}.bin",
)
TRANSFORMERS_WEIGHTS = (
    "model{variant}.safetensors",
    "model.safetensors.index{variant}.json",
    "pytorch_model{variant}.bin",
    "pytorch_model.bin.index{variant}.json",
)
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "unet": DIFFUSERS_WEIGHTS,
    "vae": DIFFUSERS_WEIGHTS,
    "text_encoder": TRANSFORMERS_WEIGHTS,
    "text_encoder_2": TRANSFORMERS_WEIGHTS,
}
"""File names of the networks' weights, in the order in which their library looks for them."""


def read_json(path: Path, consequence: str) -> dict[str, Any]:
    """A JSON mapping, UTF-8 with or without a byte order mark.

    Raises ModelError, which says what follows from its absence.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing, {consequence}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path} is not written in UTF-8 ({error}), {consequence}. Save it as UTF-8."
        ) from error
    except (OSError, RecursionError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}), {consequence}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no mapping, {consequence}.")
    return content


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a network's weights. variant: theirs, or "". index: what says which they are."""

    variant: str
    files: tuple[Path, ...]
    index: Path | None = None


def find_weights(folder: Path, part: str, variant: str) -> WeightFiles:
    """Which files of folder/part are loaded: those of the variant, or, as in diffusers, where the part has
    none of it, those without one.

    Raises ModelError where there are none, or where some of those that an index names are missing.
    """
    for kind in dict.fromkeys((variant, "")):
        for pattern in WEIGHTS[part]:
            path = folder / part / pattern.format(variant=f".{kind}" if kind else "")
            if path.is_file():
                return _sharded(path, kind) if path.suffix == ".json" else WeightFiles(kind, (path,))
    others = sorted({name for path in (folder / part).glob("*") if (name := variant_of(path.name, part))})
    mend = f" It has those of the variant {' and '.join(others)}: set model.variant." if others else ""
    names = " or ".join(pattern.format(variant="") for pattern in WEIGHTS[part])
    raise ModelError(f"{folder}: {part}/ has no weights, that is no {names}.{mend}")


def variant_of(name: str, part: str) -> str | None:
    """The variant that a weights file's name says; None where it says none, or is no weights file's."""
    for pattern in WEIGHTS[part]:
        before, after = pattern.split("{variant}")
        if name.startswith(f"{before}.") and name.endswith(after) and len(name) > len(before + after) + 1:
            found = name[len(before) + 1 : len(name) - len(after)]
            if "." not in found:
                return found
    return None


def _sharded(index: Path, variant: str) -> WeightFiles:
    shards = read_json(index, "so which files hold the weights is unknown").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index} has no weight_map, so which files hold the weights is unknown.")
    files = tuple(index.parent / str(name) for name in sorted(set(map(str, shards.values()))))
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ModelError(f"{index} names {missing[:3]}, {len(missing)} in all, which are missing beside it.")
    return WeightFiles(variant, files, index)
