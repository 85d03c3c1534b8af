"""The pipeline families by the class name in a pipeline's model_index.json."""

from __future__ import annotations

import torch
from torch import nn

from common.config.training import ModelSection, SamplingSection
from common.errors import ModelError
from common.model.families.base import Family
from common.model.families.flux import FluxFamily
from common.model.families.flux2_klein import Flux2KleinFamily
from common.model.families.pixart_sigma import PixArtSigmaFamily
from common.model.families.qwen_image import QwenImageFamily
from common.model.families.sana import SanaFamily
from common.model.families.stable_diffusion import StableDiffusionFamily
from common.model.families.stable_diffusion_3 import StableDiffusion3Family
from common.model.families.stable_diffusion_xl import StableDiffusionXLFamily
from common.model.families.z_image import ZImageFamily
from common.model.parts import Source
from common.model.single_file import check_single_file
from common.places import why_no_model

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusionFamily,
    "StableDiffusionXLPipeline": StableDiffusionXLFamily,
    "StableDiffusion3Pipeline": StableDiffusion3Family,
    "PixArtSigmaPipeline": PixArtSigmaFamily,
    "Flux2KleinPipeline": Flux2KleinFamily,
    "ZImagePipeline": ZImageFamily,
    "QwenImagePipeline": QwenImageFamily,
    "SanaPipeline": SanaFamily,
    "FluxPipeline": FluxFamily,
}


def check_model(model: ModelSection, sampling: SamplingSection) -> None:
    """Raise ModelError where the model cannot serve these settings. Loads no weights.

    Reads configurations, tokenizers and, of a folder or a single file, the headers of its weights. What looks
    like a path and is neither is refused.
    """
    for key, place in (("model.path", model.path), ("model.config", model.config)):
        if place and (reason := why_no_model(place)):
            raise ModelError(f"{key} is {place!r}: {reason}")
    source = Source(model, torch.device("cpu"))
    if source.single_file:
        check_single_file(source.single_file, source.class_of_pipeline)
    _family(source).check(source, sampling)


def outline(model: ModelSection) -> nn.Module:
    """The denoising network of a model that check_model takes, without its weights. Raises ModelError."""
    source = Source(model, torch.device("cpu"))
    return _family(source).outline(source)


def load_family(source: Source, sampling: SamplingSection) -> Family:
    """Load the pipeline's parts. Raises ModelError."""
    family = _family(source)
    family.check(source, sampling)
    return family.load(source, sampling)


def _family(source: Source) -> type[Family]:
    name = source.class_of_pipeline
    if name not in FAMILIES:
        raise ModelError(
            f"{source.settings.path!r} holds a {name}, which is not served. Served are "
            f"{', '.join(FAMILIES)}. To serve another, write its family, one file, and name it in "
            "common/model/families/__init__.py: docs/models.md shows how."
        )
    return FAMILIES[name]
