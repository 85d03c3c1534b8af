"""The pipeline families by the class name in a pipeline's model_index.json."""

from __future__ import annotations

from pathlib import Path

import torch

from common.config.training import ModelSection, SamplingSection
from common.errors import ModelError
from common.model.families.base import Family, FolderCheck
from common.model.families.stable_diffusion import StableDiffusionFamily
from common.model.families.stable_diffusion_xl import StableDiffusionXLFamily
from common.model.parts import Source, read_json

FAMILIES: dict[str, type[FolderCheck]] = {
    "StableDiffusionPipeline": StableDiffusionFamily,
    "StableDiffusionXLPipeline": StableDiffusionXLFamily,
}


def check_model(model: ModelSection, sampling: SamplingSection) -> None:
    """Raise ModelError where the model cannot serve these settings.

    Reads only small JSON files of a local folder. What a hub id holds is known when it is loaded; what looks
    like a path and is no folder is refused.
    """
    folder = Path(model.path)
    if not folder.is_dir():
        if folder.exists() or model.path.startswith((".", "/", "~")) or model.path.count("/") != 1:
            raise ModelError(
                f"model.path {model.path!r} is neither a folder nor a hub id of the form owner/name."
            )
        return
    family = _family(read_json(folder / "model_index.json", "so it is no diffusers pipeline folder"), model)
    for part, files in family.FILES.items():
        if not any((folder / part / name).is_file() for name in files):
            raise ModelError(f"{model.path!r} is incomplete: {part}/ holds no {' or '.join(files)}.")
    read_json(folder / "scheduler" / "scheduler_config.json", "so its noise schedule is unknown")
    family.check(Source(model, torch.device("cpu")), sampling)


def load_family(source: Source, sampling: SamplingSection) -> Family:
    """Load the pipeline's parts. Raises ModelError."""
    check_model(source.settings, sampling)
    return _family(source.index(), source.settings).load(source, sampling)


def _family(index: dict[str, object], model: ModelSection) -> type[FolderCheck]:
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise ModelError(f"{model.path!r} holds a {name}; supported are {', '.join(FAMILIES)}.")
    return FAMILIES[name]
