"""Whether a network's weight files hold its tensors: names and shapes, from the files' headers alone."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError  # torch.load raises it for what it refuses; nothing is unpickled here
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    Gemma2PreTrainedModel,
    PreTrainedModel,
    Qwen2_5_VLPreTrainedModel,
    Qwen3PreTrainedModel,
)

from common.errors import ModelError
from common.model.folder import WeightFiles

# What diffusers, transformers, torch and safetensors raise for files that are missing, damaged or do not fit.
LOAD_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
LANGUAGE_MODELS = (Gemma2PreTrainedModel, Qwen2_5_VLPreTrainedModel, Qwen3PreTrainedModel)
"""transformers gives other names to their files' tensors: what they lack is known once they are loaded."""
# The whole numbers of a safetensors header, by its names; all others are floating point.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
}
SHOWN = 3
# What files have beside a CLIP text encoder's weights: a buffer of numbers in order, and the rest of CLIP.
_BESIDE = ("vision_model.", "visual_projection.", "logit_scale", "text_projection.")


def check_tensors(part: str, network: nn.Module, weights: WeightFiles) -> None:
    """Raise ModelError that names the first tensors that are missing, of another shape, or not the network's.

    part: in words, for the message. network: as its configuration makes it, on the meta device.
    """
    wanted: dict[str, Tensor] = network.state_dict()
    found: dict[str, Tensor] = {}
    for file in weights.files:
        found |= read_headers(file)
    place = f"{part} ({', '.join(file.name for file in weights.files[:SHOWN])})"
    refuse_integers(place, found, wanted)
    if isinstance(network, LANGUAGE_MODELS):
        return
    if isinstance(network, ModelMixin):
        if weights.index is None:
            # Names of attention weights from before diffusers 0.17 are changed on loading, as is done here.
            found = network._fix_state_dict_keys_on_load(found)
    elif isinstance(network, PreTrainedModel):
        # A file holds tensors that share their numbers once.
        tied = [name for name in network._tied_weights_keys or () if name not in found]
        wanted = {name: value for name, value in wanted.items() if name not in tied}
        wanted, found = _without_prefix(wanted), _without_prefix(found)
        found = {name: value for name, value in found.items() if name in wanted or not _is_beside(name)}
    refuse_tensors(
        place,
        missing=set(wanted) - set(found),
        unexpected=set(found) - set(wanted),
        misshapen=[
            f"{name} is {tuple(found[name].shape)} instead of {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in found and found[name].shape != value.shape
        ],
    )


def refuse_integers(place: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ModelError where weights are whole numbers, as quantisation leaves them: their scales are lost.

    found: of the files, on the meta device. wanted: the network's; of what has other names there, weights and
    biases are known by theirs.
    """
    integers = [
        f"{name} is {str(value.dtype).removeprefix('torch.')}"
        for name, value in found.items()
        if not value.is_floating_point()
        and (wanted[name].is_floating_point() if name in wanted else name.endswith((".weight", ".bias")))
    ]
    refuse_tensors(place, integers=integers)


def check_finite(part: str, network: nn.Module) -> None:
    """Raise ModelError that names the first tensors with a NaN or an infinity. part: in words."""
    bad = [
        name
        for name, value in network.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    refuse_tensors(part, infinite=bad)


def refuse_tensors(
    place: str,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    misshapen: Collection[str] = (),
    infinite: Collection[str] = (),
    integers: Collection[str] = (),
) -> None:
    """Raise ModelError where any are given. misshapen, integers: names with shapes or types, in words."""
    kinds = {
        "lack": missing,
        "have tensors that the configuration has none of:": unexpected,
        "have other shapes than the configuration says:": misshapen,
        "hold numbers that are not finite, in": infinite,
        "are quantised, where the network's numbers are floating point:": integers,
    }
    faults = [f"{verb} {_first(names)}" for verb, names in kinds.items() if names]
    if faults:
        raise ModelError(f"The weights of {place} {'; they '.join(faults)}.")


def _first(names: Collection[str]) -> str:
    every = sorted(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def read_headers(file: Path) -> dict[str, Tensor]:
    """The file's tensors without their numbers, on the meta device, by name."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                return {
                    name: torch.empty(
                        one.get_shape(), dtype=_DTYPES.get(one.get_dtype(), torch.float32), device="meta"
                    )
                    for name, one in slices.items()
                }
        content: Any = torch.load(
            file, map_location="meta", weights_only=True, mmap=True if zipfile.is_zipfile(file) else None
        )
    except LOAD_ERRORS as error:
        raise ModelError(f"{file} cannot be read as weights: {error}") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{file} holds no tensors by name, but a {type(content).__name__}.")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers 4 begins the names of a text encoder's weights with text_model, transformers 5 may not."""
    return {name.removeprefix("text_model."): value for name, value in tensors.items()}


def _is_beside(name: str) -> bool:
    return name.endswith("position_ids") or name.startswith(_BESIDE)
