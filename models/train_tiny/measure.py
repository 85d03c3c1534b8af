"""Sampling from the base model and measuring pictures with a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor

from models.attributes import alternatives, attributes_of
from models.scenes import Scene, prompt_of

DDIM: Mapping[str, float] = {"eta": 1.0}
"""How tiny-sd is called: as a stochastic sampler."""
EULER: Mapping[str, int] = {"max_sequence_length": 1}
"""How tiny-sd3 is called: with one row of zeros in place of T5's prompt, not 256, which take longer."""


@dataclass(frozen=True)
class Reward:
    """A CLIP model with its processor."""

    model: CLIPModel
    processor: CLIPProcessor

    @classmethod
    def load(cls, folder: Path) -> Reward:
        """The reward in ``folder``, in float32."""
        model = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        return cls(model, CLIPProcessor.from_pretrained(folder))

    @torch.no_grad()
    def images(self, pictures: NDArray[np.uint8]) -> torch.Tensor:
        """Unit embeddings (N, D) of (N, 64, 64, 3) pictures."""
        pixels = self.processor(
            images=[Image.fromarray(p) for p in pictures], return_tensors="pt"
        ).pixel_values
        parts = [self.model.get_image_features(pixel_values=part).pooler_output for part in pixels.split(64)]
        return functional.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit embeddings (N, D) of prompts."""
        tokens = self.processor(text=list(prompts), padding=True, return_tensors="pt")
        parts = [
            self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
            for ids, mask in zip(tokens.input_ids.split(256), tokens.attention_mask.split(256), strict=True)
        ]
        return functional.normalize(torch.cat(parts), dim=-1)


@dataclass(frozen=True)
class Quality:
    """What a reward says of pictures: mean cosine, share right per attribute and in every attribute."""

    cosine: float
    accuracy: dict[str, float]
    attributes: float
    all_right: float
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Question:
    """A scene's prompt and, attribute by attribute, the prompts that differ in it alone, as embeddings.

    ``truths`` gives the true one's place in each group; ``sizes`` the groups' lengths.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    truths: tuple[int, ...]
    texts: torch.Tensor

    @classmethod
    def about(cls, reward: Reward, scene: Scene) -> Question:
        """The question about ``scene``, put in the words that ``reward`` understands."""
        names = attributes_of(scene)
        groups = [alternatives(scene, name) for name in names]
        prompts = [prompt_of(scene)] + [prompt_of(option) for group in groups for option in group]
        return cls(
            names,
            tuple(len(group) for group in groups),
            tuple(group.index(scene) for group in groups),
            reward.texts(prompts),
        )

    def judge(self, image: torch.Tensor) -> tuple[float, list[bool]]:
        """Cosine of a unit image embedding with the prompt, and whether each attribute is read right."""
        scores = self.texts @ image
        groups = scores[1:].split(list(self.sizes))
        right = [int(part.argmax()) == truth for part, truth in zip(groups, self.truths, strict=True)]
        return float(scores[0]), right


def measure(reward: Reward, pictures: NDArray[np.uint8], questions: Sequence[Question]) -> Quality:
    """Zero-shot: does the true prompt beat those that differ in one attribute?

    ``attributes`` is the mean over all of them; ``all_right`` the share of pictures right in all.
    """
    cosines: list[float] = []
    answers: dict[str, list[bool]] = {}
    whole: list[bool] = []
    for image, question in zip(reward.images(pictures), questions, strict=True):
        cosine, right = question.judge(image)
        cosines.append(cosine)
        for name, correct in zip(question.names, right, strict=True):
            answers.setdefault(name, []).append(correct)
        whole.append(all(right))
    accuracy = {name: float(np.mean(values)) for name, values in answers.items()}
    flat = [value for values in answers.values() for value in values]
    return Quality(
        float(np.mean(cosines)), accuracy, float(np.mean(flat)), float(np.mean(whole)), np.array(whole)
    )


def noise_ratio(made: torch.Tensor, pictures: torch.Tensor) -> float:
    """Peak signal-to-noise ratio, in decibels, of pictures in -1..1 against the true ones."""
    return -10 * float(((made.clamp(-1, 1) - pictures) / 2).square().mean().log10())


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The pipeline in ``folder``, in float32, with its DDIM scheduler and without a progress bar."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_flow_pipeline(folder: Path) -> StableDiffusion3Pipeline:
    """The flow pipeline in ``folder``, in float32, without a progress bar."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline | StableDiffusion3Pipeline,
    prompts: Sequence[str],
    guidance: float,
    seed: int,
    options: Mapping[str, float] = DDIM,
    steps: int = 10,
    batch: int = 32,
) -> NDArray[np.uint8]:
    """Pictures (N, 64, 64, 3); ``guidance`` 0 is none, ``options`` are the pipeline's own."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for first in range(0, len(prompts), batch):
        output = pipeline(
            list(prompts[first : first + batch]),
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="np",
            **options,
        ).images
        parts.append((output * 255).round().astype(np.uint8))
    return np.concatenate(parts)
