"""The policy pi_theta and its frozen reference: what predicts, what is trained, how it is loaded and saved.

A policy is a pipeline family's UNet under classifier-free guidance: the guided prediction defines the policy,
for theta, old and reference alike (paper.md, open points).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from common.config.training import FullPolicy, LoraPolicy
from common.errors import ModelError, WeightsError
from common.model.families.stable_diffusion import Condition, PipelineFamily
from common.model.steps import Steps
from common.model.weights import Tensors, order_metadata

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder of LoRA weights."""


class Denoiser(Protocol):
    """Predicts under guidance. The policy is one, its reference another."""

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Guided model output.

        latents (M, C, H, W), timesteps float32 (M,) -> (M, C, H, W). condition: one prompt's (see
        TrajectoryGroup), or that of M items: M rows of the prompts', then M of those moved away from.
        """
        ...


class Trainable(Protocol):
    """Which of the UNet's tensors are trained, how they are saved, and what the untrained UNet is."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name, float32. Live, not copies."""
        ...

    def untrained(self, guided: GuidedUnet) -> Denoiser:
        """The reference. Call before training: what a full UNet was is known only then."""
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights as plain diffusers reads them."""
        ...


@dataclass(frozen=True)
class GuidedUnet:
    """Guided prediction of one UNet.

    guidance_scale 1 takes one UNet pass a step; above 1 the empty prompt's pass is batched with the prompt's:
    f = f_empty + guidance_scale (f_prompt - f_empty). autocast: bfloat16 forward passes, float32 result.
    """

    family: PipelineFamily
    unet: Any
    guidance_scale: float
    autocast: bool

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        items = latents.shape[0]
        with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            if self.guidance_scale == 1.0:
                prompt = {name: _each(rows, 1, items)[:items] for name, rows in condition.items()}
                return self.family.predict(self.unet, latents, timesteps, prompt)
            both = {name: _each(rows, 2, items).roll(items, 0) for name, rows in condition.items()}
            output = self.family.predict(self.unet, latents.repeat(2, 1, 1, 1), timesteps.repeat(2), both)
        empty, guided = output.chunk(2)
        return empty + self.guidance_scale * (guided - empty)


def _each(rows: Tensor, prompts: int, items: int) -> Tensor:
    """A condition's rows for each of the items. prompts: rows of a condition that all items share."""
    return rows.repeat_interleave(items, 0) if len(rows) == prompts else rows


@dataclass(frozen=True)
class AdapterOff:
    """The reference of a LoRA policy: the same UNet with its adapter switched off."""

    guided: GuidedUnet

    @torch.no_grad()
    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        self.guided.unet.disable_adapters()
        try:
            return self.guided.predict(latents, timesteps, condition)
        finally:
            self.guided.unet.enable_adapters()


@dataclass(frozen=True)
class FrozenCopy:
    """The reference of a fully trained policy: a copy of the UNet that nothing updates.

    Its weights keep the policy's requires_grad: torch chooses kernels by it, and frozen ones would round
    otherwise.
    """

    guided: GuidedUnet

    @torch.no_grad()
    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        return self.guided.predict(latents, timesteps, condition)


@dataclass(frozen=True)
class LoraTrainable:
    """A PEFT LoRA adapter."""

    unet: Any

    def parameters(self) -> dict[str, nn.Parameter]:
        """Adapter matrices."""
        return {name: value for name, value in self.unet.named_parameters() if "lora_" in name}

    def untrained(self, guided: GuidedUnet) -> Denoiser:
        """The UNet with the adapter off: costs no memory."""
        return AdapterOff(guided)

    def save(self, folder: Path) -> None:
        """pytorch_lora_weights.safetensors, read by pipe.load_lora_weights(folder).

        The same weights give the same bytes in every process.
        """
        adapter = self.unet.peft_config["default"].to_dict()
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet)),
            weight_name=LORA_FILE,
            safe_serialization=True,
            unet_lora_adapter_metadata={
                name: sorted(value) if isinstance(value, set) else value for name, value in adapter.items()
            },
        )
        file = folder / LORA_FILE
        file.write_bytes(order_metadata(file.read_bytes()))


@dataclass(frozen=True)
class FullTrainable:
    """Every UNet weight."""

    unet: Any

    def parameters(self) -> dict[str, nn.Parameter]:
        """All UNet weights."""
        return dict(self.unet.named_parameters())

    def untrained(self, guided: GuidedUnet) -> Denoiser:
        """A copy of the UNet as it is now."""
        return FrozenCopy(replace(guided, unet=copy.deepcopy(self.unet)))

    def save(self, folder: Path) -> None:
        """A UNet folder, read by UNet2DConditionModel.from_pretrained(folder)."""
        self.unet.save_pretrained(folder, safe_serialization=True)


def add_lora(family: PipelineFamily, settings: LoraPolicy) -> LoraTrainable:
    """Attach a new adapter (B = 0, so the policy starts as the reference).

    Raises ModelError where it binds to nothing.
    """
    unet: Any = family.unet
    names = [name for name, _ in unet.named_modules()]
    for target in settings.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ModelError(
                f"policy.target_modules names {target!r}, which no module of the UNet is called."
            )
    # The adapter's A matrices are drawn: a fork with a fixed seed keeps every process and every run equal.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                init_lora_weights="gaussian",
                target_modules=list(settings.target_modules),
            )
        )
    trainable = LoraTrainable(unet)
    for value in trainable.parameters().values():
        value.requires_grad_(True)
    return trainable


def train_all(family: PipelineFamily, _settings: FullPolicy) -> FullTrainable:
    """Train every weight."""
    unet: Any = family.unet
    unet.requires_grad_(True)
    return FullTrainable(unet)


def make_trainable(family: PipelineFamily, settings: LoraPolicy | FullPolicy) -> Trainable:
    """Choose what is trained. Called once for a loaded family."""
    if isinstance(settings, LoraPolicy):
        return add_lora(family, settings)
    return train_all(family, settings)


@dataclass(frozen=True)
class Policy:
    """pi_theta."""

    family: PipelineFamily
    trainable: Trainable
    guided: GuidedUnet

    @staticmethod
    def build(
        family: PipelineFamily, settings: LoraPolicy | FullPolicy, guidance_scale: float, precision: str
    ) -> Policy:
        """Make a loaded family trainable. Raises ModelError where nothing would be trained."""
        trainable = make_trainable(family, settings)
        guided = GuidedUnet(family, family.unet, guidance_scale, autocast=precision == "bfloat16")
        return Policy(family, trainable, guided)

    def reference(self) -> Denoiser:
        """pi_ref, the pretrained policy. Call before any load or update."""
        return self.trainable.untrained(self.guided)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        return self.guided.predict(latents, timesteps, condition)

    def schedule(self, steps: Steps) -> str:
        """Fingerprint of the steps and of what decides the prediction: equal where log-probs compare."""
        guided, shape = self.guided, self.family.latent_shape
        setting = f"guidance {guided.guidance_scale!r}; latents {shape}; autocast {guided.autocast}"
        return steps.fingerprint(setting)

    def embed(self, prompt: str) -> Condition:
        """The prompt's condition and, where guidance needs it, the empty prompt's."""
        return self.family.embed([prompt] if self.guided.guidance_scale == 1.0 else [prompt, ""])

    def load(self, tensors: Tensors) -> None:
        """Copy trained weights in.

        Raises WeightsError on a missing or extra name, or another shape or type.
        """
        own = self.trainable.parameters()
        missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
        if missing or extra:
            raise WeightsError(
                f"Weights do not fit the policy: missing {missing[:3]}, not in the policy {extra[:3]}."
            )
        with torch.no_grad():
            for name, value in own.items():
                given = tensors[name]
                if given.shape != value.shape or given.dtype != value.dtype:
                    raise WeightsError(
                        f"Weight {name} is {given.dtype} {tuple(given.shape)}, "
                        f"the policy's {value.dtype} {tuple(value.shape)}."
                    )
                value.copy_(given)
