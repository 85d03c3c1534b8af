"""Options of pretrained parts: each is one that is honoured, or has to be neutral.

Options decide what a network or a schedule computes, so one that nothing here reads would give other images
without a word. What a part's class does by itself (widths, kinds of blocks) is honoured by loading the class.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPTextConfig, T5Config

from common.errors import ModelError

Allowed = Mapping[str, tuple[object, ...]]
"""The values that an option may have, by its name."""

OFF: tuple[object, ...] = (None, False, 0, "", [], {}, ())
"""What an option that nobody knows may be."""
_REMARKS = ("architectures", "transformers_version", "dtype", "torch_dtype")


def check_options(file: Path, settings: Mapping[str, Any], known: Collection[str], allowed: Allowed) -> None:
    """Raise ModelError that names all options whose value is not allowed, or that are not known and not off.

    file: where they stand. known: options of which every value is honoured, or changes nothing here.
    """
    faults = []
    for key, value in settings.items():
        if key.startswith("_") or key in _REMARKS or (key in known and key not in allowed):
            continue
        if value not in allowed.get(key, OFF):
            wanted = ", ".join(map(repr, allowed.get(key, (None, False))))
            unknown = "" if key in allowed else ", an option that is not known here"
            faults.append(f"{key} is {value!r}{unknown} (allowed: {wanted})")
    if faults:
        raise ModelError(
            f"{file} asks for what has no counterpart here: {'; '.join(faults)}. Change it there if the "
            "model was trained without it."
        )


def check_types(file: Path, settings: Mapping[str, Any], part: type[Any]) -> None:
    """Raise ModelError that names the options that are a text where the class's own value is a number or a
    truth value: it would fail, or hold for true, only in use."""
    faults = [
        f"{name} is {settings[name]!r} (by default {one.default!r})"
        for name, one in inspect.signature(part).parameters.items()
        if isinstance(one.default, bool | int | float) and isinstance(settings.get(name), str)
    ]
    if faults:
        raise ModelError(f"{file} gives texts where numbers or truth values belong: {'; '.join(faults)}.")


def check_latent_numbers(file: Path, vae: Mapping[str, Any]) -> None:
    """Raise ModelError where what latents are scaled and shifted by is no finite number, or none a channel.

    vae: an autoencoder's configuration, its class's defaults filled in.
    """
    channels = vae.get("latent_channels", vae.get("z_dim"))
    for name in ("latents_mean", "latents_std"):
        numbers = vae.get(name)
        if numbers is not None and not (
            isinstance(numbers, list | tuple) and len(numbers) == channels and all(map(_is_finite, numbers))
        ):
            raise ModelError(f"{file}: {name} is {numbers!r}; it must be {channels} finite numbers, or null.")
    for name in ("scaling_factor", "shift_factor", "batch_norm_eps"):
        value = vae.get(name)
        if name in vae and not (_is_finite(value) or (name == "shift_factor" and value is None)):
            raise ModelError(f"{file}: {name} is {value!r}; it must be a finite number.")
    if vae.get("scaling_factor") == 0:
        raise ModelError(f"{file}: scaling_factor is 0, which latents are divided by.")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def option_names(part: type[Any]) -> frozenset[str]:
    """What a class of diffusers can be configured by."""
    return frozenset(inspect.signature(part).parameters)


# What diffusers' EMAModel.save_pretrained leaves in a UNet's configuration.
AVERAGING = frozenset(
    {
        "decay",
        "inv_gamma",
        "min_decay",
        "optimization_step",
        "power",
        "update_after_step",
        "use_ema_warmup",
    }
)
# What is said of generating text, which is not done here, and of how transformers returns outputs.
GENERATION = frozenset(
    {
        "diversity_penalty",
        "dropout",
        "gradient_checkpointing",
        "id2label",
        "label2id",
        "length_penalty",
        "max_length",
        "model_type",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "repetition_penalty",
        "return_dict",
        "temperature",
        "tie_word_embeddings",
        "top_k",
        "top_p",
        "typical_p",
        "use_return_dict",
    }
)
INDEX_NAMES = frozenset(
    {"requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker", "is_distilled"}
)
"""Settings of model_index.json. A safety checker or a watermark is no part of the policy."""
TEXT_NAMES = frozenset(CLIPTextConfig().to_dict()) | GENERATION | {"use_attention_mask"}

T5_NAMES = (
    frozenset(T5Config().to_dict())
    | GENERATION
    | {"decoder_start_token_id", "n_positions", "output_past", "task_specific_params", "use_cache"}
)

# Inputs that nothing here has: a guidance scale, classes, images, layouts.
UNET: Allowed = {
    "time_cond_proj_dim": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "class_embeddings_concat": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "attention_type": ("default",),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "projection_class_embeddings_input_dim": (None,),
}
UNET_XL: Allowed = {
    name: values
    for name, values in UNET.items()
    if name not in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
} | {"addition_embed_type": ("text_time",)}
VAE_XL: Allowed = {"in_channels": (3,), "out_channels": (3,), "shift_factor": (None, 0)}
# StableDiffusionPipeline reads neither mean nor deviation of the latents.
VAE: Allowed = {**VAE_XL, "latents_mean": (None,), "latents_std": (None,)}
# Flow models' pipelines read the latents' scale and shift alone.
VAE_FLOW: Allowed = {name: values for name, values in VAE.items() if name != "shift_factor"}
T5: Allowed = {"model_type": ("t5",), "torchscript": (False, None)}
TEXT: Allowed = {"model_type": ("clip_text_model",), "torchscript": (False, None)}
