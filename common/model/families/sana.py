"""Sana: a linear transformer, a deep-compression autoencoder, prompts by Gemma 2 with a mask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from torch import Tensor, nn
from transformers import Gemma2Model

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model.families.base import PipelineParts, image_size, made_up
from common.model.families.flow import FlowFamily, Layout, Settings
from common.model.guidance import Condition
from common.model.language_models import gemma2
from common.model.options import check_options, option_names
from common.model.parts import Source
from common.model.schedules import flow_sigmas
from common.model.text import PaddedText

TOKENS = 300
SOLVER = "DPMSolverMultistepScheduler"
NEGATIVE = "\0"
"""Stands for the prompt that guidance moves away from: empty, and read without the instruction."""
INSTRUCTION = "\n".join(
    inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
)
"""What the pipeline writes before a prompt."""
SOLVER_OPTIONS = {
    "use_flow_sigmas": (True,),
    "prediction_type": ("flow_prediction",),
    "final_sigmas_type": ("zero",),
    "thresholding": (False, None),
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), (False, None)
    ),
    **dict.fromkeys(("use_dynamic_shifting", "variance_type"), (False, None)),
}


@dataclass(frozen=True)
class SanaFamily(FlowFamily):
    """Conditioned on Gemma's last hidden states of the first token and the prompt's, and their mask."""

    PIPELINE = SanaPipeline
    PARTS: ClassVar = PipelineParts(
        denoiser="transformer",
        network=SanaTransformer2DModel,
        encoders={"text_encoder": gemma2(TOKENS)},
        vae=AutoencoderDC,
        network_options={"guidance_embeds": (False, None)},
    )
    TIME_SCALE = 1000.0

    @classmethod
    def check_fit(cls, source: Source, network: Settings) -> None:
        width = source.text_config(Gemma2Model, "text_encoder").hidden_size
        if network["caption_channels"] != width:
            raise ModelError(
                f"{source.settings.path!r}: the transformer's caption_channels is "
                f"{network['caption_channels']}, but Gemma's hidden_size is {width}; they are parts of "
                "different models."
            )

    @classmethod
    def check_scheduler(cls, name: str, config: Settings) -> None:
        """Also a solver with noise levels of flow models."""
        if name == SOLVER:
            known = option_names(DPMSolverMultistepScheduler)
            check_options(Path("scheduler", "scheduler_config.json"), config, known, SOLVER_OPTIONS)
        else:
            super().check_scheduler(name, config)

    @classmethod
    def lay_out(cls, source: Source, sampling: SamplingSection) -> Layout:
        network = source.config(SanaTransformer2DModel, "transformer")
        vae = source.config(AutoencoderDC, "vae")
        path, channels, patch = source.settings.path, network["in_channels"], network["patch_size"]
        if not channels == (network["out_channels"] or channels) == vae["latent_channels"]:
            raise ModelError(
                f"{path!r}: the transformer takes {channels} channels and gives {network['out_channels']}, "
                f"the autoencoder has {vae['latent_channels']}; they must be equal."
            )
        scale = 2 ** (len(vae["encoder_block_out_channels"]) - 1)
        where = f"{path!r}: transformer/config.json has sample_size"
        size = image_size(sampling, network["sample_size"], scale, scale * patch, where)
        height, width = (side // scale for side in size)
        return Layout((channels, height, width), (height // patch, width // patch))

    @classmethod
    def sigmas(cls, scheduler: Settings, steps: int, tokens: int) -> list[float]:
        """A solver's first is a little below 1."""
        if "use_flow_sigmas" not in scheduler:
            return flow_sigmas(scheduler, steps, tokens)
        return [float(sigma) for sigma in _solver(scheduler, steps).sigmas]

    @classmethod
    def times(cls, scheduler: Settings, sigmas: Sequence[float]) -> tuple[float, ...]:
        """A solver tells whole numbers."""
        if "use_flow_sigmas" not in scheduler:
            return super().times(scheduler, sigmas)
        return tuple(float(time) for time in _solver(scheduler, len(sigmas)).timesteps)

    @classmethod
    def encode(cls, source: Source, encoders: Mapping[str, PaddedText]) -> Callable[[str], Condition]:
        text = encoders["text_encoder"]
        text.tokenizer.padding_side = "right"
        # As the pipeline counts them: of the instruction's end two tokens count as the prompt's.
        around = len(text.tokenizer.encode(INSTRUCTION)) - 2

        def encode(prompt: str) -> Condition:
            whole = "" if prompt == NEGATIVE else INSTRUCTION + prompt.lower().strip()
            ids, mask = text.tokenize(whole, source.device, 0 if prompt == NEGATIVE else around)
            states = text.encoder(ids, attention_mask=mask, return_dict=True).last_hidden_state
            kept = [0, *range(len(mask[0]) - text.tokens + 1, len(mask[0]))]
            return {
                "encoder_hidden_states": states[:, kept],
                "encoder_attention_mask": mask[:, kept].float(),
            }

        return encode

    def negative(self) -> Condition:
        """The empty prompt's, without the instruction."""
        return self.embed([NEGATIVE])

    def example(self) -> Condition:
        states = made_up(1, TOKENS, self.network.config.caption_channels).to(self.device)
        return {"encoder_hidden_states": states, "encoder_attention_mask": torch.ones_like(states[..., 0])}

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        return super().forward(network, latents, times * self.network.config.timestep_scale, condition)


def _solver(config: Settings, steps: int) -> DPMSolverMultistepScheduler:
    scheduler: DPMSolverMultistepScheduler = DPMSolverMultistepScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    return scheduler
