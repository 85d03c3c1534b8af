"""Pipelines in one .safetensors file: weights alone; what they are is said by a pipeline's configurations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config

from common.errors import ModelError
from common.model.tensors import read_headers, refuse_integers

SERVED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Pipelines of which single files are known to hold all weights, text encoders and VAE included."""


def check_single_file(file: Path, pipeline: str) -> None:
    """Raise ModelError where the file cannot be read or is quantised, or its pipeline's class is not one of
    SERVED."""
    refuse_integers(str(file), read_headers(file), {})
    if pipeline not in SERVED:
        raise ModelError(
            f"{file} is a single file of a {pipeline}; single files are served of {', '.join(SERVED)}. Save "
            "it as a folder: pipeline.save_pretrained."
        )


def known_config(file: Path) -> str:
    """Hub id of the pipeline whose configurations diffusers takes for such a file. Reads its header alone.

    Raises ModelError where the file cannot be read.
    """
    return str(fetch_diffusers_config(read_headers(file))["pretrained_model_name_or_path"])


def load_part(
    file: Path, pipeline: str, config: Path, part: str, others: Sequence[str], dtype: torch.dtype
) -> Any:
    """One part of the file, as from_single_file of the pipeline's class reads it.

    pipeline: the class. config: a folder with the pipeline's configurations. others: the parts that are not
    wanted. Raises ModelError where the file does not hold all of the part.
    """
    left_out: dict[str, Any] = dict.fromkeys(others)
    try:
        whole = getattr(diffusers, pipeline).from_single_file(
            str(file), config=str(config), local_files_only=True, dtype=dtype, **left_out
        )
    except (SingleFileComponentError, NotImplementedError) as error:
        # The latter is what torch says where a tensor stayed without numbers.
        raise ModelError(
            f"{file} lacks tensors of {part}. Is it a whole checkpoint, of the kind of {str(config)!r} "
            f"(model.config)? {error}"
        ) from error
    return getattr(whole, part)
