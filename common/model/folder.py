"""The files of a pipeline folder: its JSON, and which weights diffusers and transformers take of a part."""

from __future__ import annotations

import codecs
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    "transformer": DIFFUSERS_WEIGHTS,
    "vae": DIFFUSERS_WEIGHTS,
    "text_encoder": TRANSFORMERS_WEIGHTS,
    "text_encoder_2": TRANSFORMERS_WEIGHTS,
    "text_encoder_3": TRANSFORMERS_WEIGHTS,
}
"""File names of the networks' weights, in the order in which their library looks for them."""


def read_json(path: Path, consequence: str) -> dict[str, Any]:
    """A JSON mapping, UTF-8 with or without a byte order mark.

    Raises ModelError, which says what follows from its absence.
    """
    try:
        content = json.loads(_read_text(path, consequence))
    except (RecursionError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is no JSON ({error}), {consequence}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no mapping, {consequence}.")
    return content


def _read_text(path: Path, consequence: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing, {consequence}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not in UTF-8 ({error}), {consequence}. Save it as UTF-8.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error}), {consequence}.") from error


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


SENTENCEPIECE = "spiece.model"
"""A tokenizer of T5's that sentencepiece reads."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# What diffusers and transformers read themselves of a part's folder.
_TEXTS = ("config.json", *TOKENIZER_FILES)


def check_texts(folder: Path) -> None:
    """Raise ModelError where a file that is read of a part's folder is no JSON in UTF-8."""
    for path in (folder / name for name in _TEXTS if (folder / name).is_file()):
        if path.suffix == ".json":
            read_json(path, "so its part cannot be loaded")
        else:
            _read_text(path, "so its part cannot be loaded")


@contextmanager
def without_marks(root: Path, part: str) -> Iterator[Path]:
    """A folder whose subfolder `part` libraries can read, which take no byte order mark.

    The root itself; where one of the part's JSON files has a mark, a temporary folder with links to the
    part's other files, and such files without it.
    """
    folder = root / part
    marked = [path for path in folder.glob("*.json") if path.read_bytes().startswith(codecs.BOM_UTF8)]
    if not marked:
        yield root
        return
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / part
        copy.mkdir()
        for path in folder.iterdir():
            if path in marked:
                (copy / path.name).write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-8")
            else:
                (copy / path.name).symlink_to(path.resolve())
        yield Path(place)
