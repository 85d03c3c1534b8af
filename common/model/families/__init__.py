"""The pipeline families by the class name in a pipeline's model_index.json."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from common.config.training import ModelSection, SamplingSection
from common.errors import ModelError
from common.model.families.base import Family, FolderCheck
from common.model.families.stable_diffusion import StableDiffusionFamily
from common.model.families.stable_diffusion_xl import StableDiffusionXLFamily
from common.model.parts import Source, read_json
from common.places import why_no_folder

FAMILIES: dict[str, type[FolderCheck]] = {
    "StableDiffusionPipeline": StableDiffusionFamily,
    "StableDiffusionXLPipeline": StableDiffusionXLFamily,
}


def check_model(model: ModelSection, sampling: SamplingSection) -> None:
    """Raise ModelError where the model cannot serve these settings.

    Reads only small JSON files: all of a local folder, of a hub id the one that names the pipeline. What
    looks like a path and is no folder is refused.
    """
    folder = Path(model.path)
    if not folder.is_dir():
        if reason := why_no_folder(model.path):
            raise ModelError(f"model.path is {model.path!r}: {reason}")
        _family(Source(model, torch.device("cpu")).index(), model)
        return
    family = _family(read_json(folder / "model_index.json", "so it is no diffusers pipeline folder"), model)
    for part, files in family.FILES.items():
        if not any((folder / part / name).is_file() for name in files):
            raise ModelError(f"{model.path!r} is incomplete: {part}/ holds no {' or '.join(files)}.")
    read_json(folder / "scheduler" / "scheduler_config.json", "so its noise schedule is unknown")
    family.check(Source(model, torch.device("cpu")), sampling)


def outline(model: ModelSection) -> nn.Module:
    """The denoising network of a model that check_model takes, without its weights. Raises ModelError."""
    source = Source(model, torch.device("cpu"))
    return _family(source.index(), model).outline(source)


def load_family(source: Source, sampling: SamplingSection) -> Family:
    """Load the pipeline's parts. Raises ModelError."""
    check_model(source.settings, sampling)
    return _family(source.index(), source.settings).load(source, sampling)


def _family(index: dict[str, object], model: ModelSection) -> type[FolderCheck]:
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise ModelError(f"{model.path!r} holds a {name}; supported are {', '.join(FAMILIES)}.")
    return FAMILIES[name]
