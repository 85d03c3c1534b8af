"""Qwen-Image: packed latents, prompts by Qwen 2.5 VL with a mask, guidance that keeps lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model.families.base import PipelineParts, image_size, made_up
from common.model.families.flow import JOINT_PROJECTIONS, FlowFamily, Layout, Settings
from common.model.guidance import Condition, Guidance, NormPreserving, Unguided
from common.model.language_models import hidden_states, qwen
from common.model.parts import Source, Unscale
from common.model.schedules import flow_sigmas
from common.model.text import PaddedText

TOKENS = 512
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
BEFORE = 34
"""Tokens of the template before the prompt, whose states are dropped."""
OWN_SIDE = 128
"""Of latents, of the images that the pipeline paints by itself."""
PATCH = 2


@dataclass(frozen=True)
class QwenImageFamily(FlowFamily):
    """Conditioned on Qwen's last hidden states of what follows the template's beginning, and their mask."""

    PIPELINE = QwenImagePipeline
    PARTS: ClassVar = PipelineParts(
        denoiser="transformer",
        network=QwenImageTransformer2DModel,
        encoders={"text_encoder": qwen(Qwen2_5_VLForConditionalGeneration, TOKENS, chats=False)},
        vae=AutoencoderKLQwenImage,
        network_options=dict.fromkeys(
            ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"), (False, None)
        ),
        # Of an argument that did nothing; the published weights still name it.
        network_remarks=frozenset({"pooled_projection_dim"}),
        vae_options={"input_channels": (3,)},
    )
    TIME_SCALE = 1.0

    @classmethod
    def check_fit(cls, source: Source, network: Settings) -> None:
        config = source.text_config(Qwen2_5_VLForConditionalGeneration, "text_encoder").get_text_config()
        if network["joint_attention_dim"] != config.hidden_size:
            raise ModelError(
                f"{source.settings.path!r}: the transformer's joint_attention_dim is "
                f"{network['joint_attention_dim']}, but Qwen's hidden_size is {config.hidden_size}; they are "
                "parts of different models."
            )

    @classmethod
    def lay_out(cls, source: Source, sampling: SamplingSection) -> Layout:
        network = source.config(QwenImageTransformer2DModel, "transformer")
        vae, patch = source.config(AutoencoderKLQwenImage, "vae"), network["patch_size"]
        channels = vae["z_dim"] * PATCH**2
        if patch != PATCH or network["in_channels"] != channels or network["out_channels"] != vae["z_dim"]:
            raise ModelError(
                f"{source.settings.path!r}: the transformer has patches of {patch} and takes "
                f"{network['in_channels']} channels, the VAE has {vae['z_dim']}; patches must be of {PATCH}, "
                f"of {PATCH**2} times the VAE's channels."
            )
        scale = 2 ** len(vae["temperal_downsample"])
        size = image_size(sampling, OWN_SIDE, scale, scale * PATCH, "the pipeline has")
        rows, columns = (side // (scale * PATCH) for side in size)
        return Layout((rows * columns, channels), (rows, columns))

    @classmethod
    def sigmas(cls, scheduler: Settings, steps: int, tokens: int) -> list[float]:
        return flow_sigmas(scheduler, steps, tokens, np.linspace(1.0, 1 / steps, steps).tolist())

    @classmethod
    def guided(cls, network: Settings, scale: float) -> Guidance:
        """Classifier-free, the result as long as the prediction for the prompt."""
        return Unguided() if scale == 1.0 else NormPreserving(scale)

    @classmethod
    def unscaling(cls, layout: Layout) -> Unscale:
        """Unpacked, by each channel's mean and deviation, one frame."""

        def unscale(vae: Any, latents: Tensor) -> Tensor:
            spread = unpack(latents, layout.grid)
            mean, std = (
                latents.new_tensor(values).view(1, -1, 1, 1)
                for values in (vae.config.latents_mean, vae.config.latents_std)
            )
            return (spread * std + mean).unsqueeze(2)

        return unscale

    @classmethod
    def encode(cls, source: Source, encoders: Mapping[str, PaddedText]) -> Callable[[str], Condition]:
        text = encoders["text_encoder"]
        text.tokenizer.padding_side = "right"

        def encode(prompt: str) -> Condition:
            states, mask = hidden_states(text, TEMPLATE.format(prompt), source.device, BEFORE)
            return {
                "encoder_hidden_states": (states[-1] * mask[..., None])[:, BEFORE:],
                "encoder_hidden_states_mask": mask[:, BEFORE:].float(),
            }

        return encode

    def negative(self) -> Condition:
        """A blank's."""
        return self.embed([" "])

    def example(self) -> Condition:
        states = made_up(1, TOKENS, self.network.config.joint_attention_dim).to(self.device)
        return {
            "encoder_hidden_states": states,
            "encoder_hidden_states_mask": torch.ones_like(states[..., 0]),
        }

    def constants(self, condition: Condition) -> dict[str, Any]:
        """One frame's rows and columns, an item each."""
        return {"img_shapes": [[(1, *self.layout.grid)]] * len(condition["encoder_hidden_states"])}

    @staticmethod
    def targets(network: nn.Module) -> tuple[str, ...]:
        """The projections of the joint attentions, but for what the last makes of the text, which is
        dropped."""
        found = [name for name, _ in network.named_modules() if name.endswith(JOINT_PROJECTIONS)]
        last = found[-1].rpartition(".attn.")[0]
        dropped = (f"{last}.attn.add_q_proj", f"{last}.attn.to_add_out")
        return tuple(name for name in found if name not in dropped)


def unpack(latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches of two by two, (B, rows columns, 4 C) -> (B, C, 2 rows, 2 columns)."""
    rows, columns = grid
    spread = latents.unflatten(1, grid).unflatten(-1, (-1, PATCH, PATCH))
    return spread.permute(0, 3, 1, 4, 2, 5).reshape(len(latents), -1, rows * PATCH, columns * PATCH)
