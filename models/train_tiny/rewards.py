"""Stages ``proxy`` and ``gold``: train the two CLIP rewards with hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from models.attributes import alternatives, attributes_of
from models.compose import compose_many
from models.scenes import (
    BACKGROUNDS,
    COUNTS,
    OBJECTS,
    POSITIONS,
    SIZES,
    Kind,
    Scene,
    canonical,
    is_heldout,
    prompt_of,
)
from models.train_tiny.augment import augment, ghost, pixel_values, through_vae
from models.train_tiny.clip import PLANS, RewardPlan, make_clip, make_processor, save_clip
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.paths import SD_FOLDER
from models.train_tiny.schedule import learning_rate, progress, set_rate

GROUPS = 16
GROUP_SIZE = 6
GHOSTS = 12
FACT_WEIGHT = 0.5
VAE_SHARE = 0.15
LATENT_NOISE = 0.25

_LAYOUTS: tuple[object, ...] = (*POSITIONS, *COUNTS, "beside", "stacked")
_FACT_SIZES = (
    len(OBJECTS),
    len(OBJECTS) + 1,
    len(SIZES) + 1,
    len(SIZES) + 1,
    len(_LAYOUTS),
    len(BACKGROUNDS),
)


def hard_group(rng: np.random.Generator) -> list[Scene]:
    """A training scene and distinct training scenes that each differ from it in one attribute."""
    group = [random_scene(rng)]
    seen = {canonical(group[0])}
    attributes = attributes_of(group[0])
    while len(group) < GROUP_SIZE:
        options = alternatives(group[0], attributes[int(rng.integers(len(attributes)))])
        scene = options[int(rng.integers(len(options)))]
        if canonical(scene) not in seen and not is_heldout(scene):
            seen.add(canonical(scene))
            group.append(scene)
    return group


_PAIR_LAYOUTS = {"left": "beside", "above": "stacked"}


def _layout(scene: Scene) -> object:
    by_kind = {
        Kind.SINGLE: scene.position,
        Kind.COUNT: scene.count,
        Kind.PAIR: _PAIR_LAYOUTS.get(str(scene.relation)),
    }
    return by_kind[scene.kind]


def facts(scene: Scene) -> list[int]:
    """The picture's content as class numbers: both objects, both sizes, layout, background."""
    scene = canonical(scene)
    sizes: tuple[str | None, ...] = (*SIZES, None)
    return [
        OBJECTS.index(scene.object1),
        (*OBJECTS, None).index(scene.object2),
        sizes.index(scene.size1),
        sizes.index(scene.size2),
        _LAYOUTS.index(_layout(scene)),
        BACKGROUNDS.index(scene.background),
    ]


class FactHead(nn.Module):
    """Reads the facts of a scene off an embedding; one head for pictures and prompts draws them together.

    It only speeds the training up and is not shipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, sum(_FACT_SIZES))

    def forward(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of (N, 128) unit embeddings against (N, 6) class numbers."""
        logits = self.linear(embeddings * 12.0).split(_FACT_SIZES, dim=1)
        losses = [functional.cross_entropy(part, targets[:, i]) for i, part in enumerate(logits)]
        return torch.stack(losses).mean()


def contrast(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Symmetric contrastive loss; images beyond ``len(texts)`` are negatives for every prompt.

    ``same`` (texts x texts, bool) marks prompts that describe one picture: they are no negatives.
    """
    count = len(texts)
    targets = torch.arange(count)
    logits = scale.exp() * texts @ images.T
    excluded = same & ~torch.eye(count, dtype=torch.bool)
    square = logits[:, :count].masked_fill(excluded, -1e4)
    to_image = functional.cross_entropy(torch.cat([square, logits[:, count:]], 1), targets)
    return (to_image + functional.cross_entropy(square.T, targets)) / 2


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, scenes: Sequence[Scene]) -> torch.Tensor:
    """Unit embeddings (N, 128) of the scenes' prompts."""
    tokens = tokenizer([prompt_of(scene) for scene in scenes], padding=True, return_tensors="pt")
    return functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def embed_images(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Unit embeddings (N, 128) of preprocessed pictures."""
    return functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def make_batch(
    plan: RewardPlan, vae: AutoencoderKL | None, rng: np.random.Generator
) -> tuple[list[Scene], torch.Tensor]:
    """Scenes in groups of hard negatives, and preprocessed pictures of them followed by ghosts."""
    scenes = [scene for _ in range(GROUPS) for scene in hard_group(rng)]
    ghosts = [ghost(scenes[int(rng.integers(len(scenes)))], rng) for _ in range(GHOSTS)]
    pictures = to_tensor(np.concatenate([compose_many(scenes, rng), np.stack(ghosts)]))
    if vae is not None:
        pictures = through_vae(pictures, vae, VAE_SHARE, LATENT_NOISE)
    return scenes, pixel_values(augment(pictures, plan, rng), plan)


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its end (whichever comes first), how far the rate falls, the use of the VAE."""

    steps: int
    minutes: float
    rate_factor: float
    fall: float
    round_trip: bool


# Plain pictures first; then also pictures that went through the decoder, the rate falling to its end.
PHASES: dict[str, Phase] = {
    "plain": Phase(500, 25.0, rate_factor=1.0, fall=0.3, round_trip=False),
    "hardened": Phase(1000, 25.0, rate_factor=0.8, fall=1.0, round_trip=True),
}


def _loss(
    model: CLIPModel, head: FactHead, tokenizer: CLIPTokenizer, scenes: list[Scene], pixels: torch.Tensor
) -> tuple[torch.Tensor, str]:
    """The training loss of a batch, and a line about it."""
    targets = torch.tensor([facts(scene) for scene in scenes])
    names = [canonical(scene) for scene in scenes]
    same = torch.tensor([[one == other for other in names] for one in names])
    images, texts = embed_images(model, pixels), embed_texts(model, tokenizer, scenes)
    loss = contrast(images, texts, model.logit_scale, same)
    known = head(images[: len(scenes)], targets) + head(texts, targets)
    right = (images[: len(scenes)] @ texts.T).argmax(1) == torch.arange(len(scenes))
    line = f"contrast {loss.item():.3f} facts {known.item():.3f} right {right.float().mean().item():.3f}"
    return loss + FACT_WEIGHT * known, line


def run_phase(name: str, plan: RewardPlan, phase: Phase, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Train ``model`` through ``phase`` and write it to the plan's folder."""
    rng = np.random.default_rng([plan.seed, int(phase.round_trip)])
    vae = None
    if phase.round_trip:
        vae = AutoencoderKL.from_pretrained(SD_FOLDER / "vae", torch_dtype=torch.float32).eval()
    head = FactHead()
    parameters = [*model.parameters(), *head.parameters()]
    peak = plan.learning_rate * phase.rate_factor
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    for step, share, seconds in progress(phase.steps, phase.minutes):
        warm = min(1.0, (step + 1) / 50)
        set_rate(optimizer, warm * learning_rate(share * phase.fall, 1.0, peak, warm_up=1))
        scenes, pixels = make_batch(plan, vae, rng)
        loss, line = _loss(model, head, tokenizer, scenes, pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=3.9)  # e^3.9 = 49: keeps cosines spread out
        if step % 50 == 0:
            print(f"{name} step {step} {line} {seconds:.0f} s", flush=True)
    save_clip(model, plan.folder)


def run(name: str, phases: Sequence[str] = tuple(PHASES)) -> None:
    """Train the reward ``name`` ("proxy" or "gold") through ``phases``; "plain" starts afresh."""
    plan = PLANS[name]
    torch.manual_seed(plan.seed)
    if "plain" in phases:
        tokenizer = make_processor(plan).tokenizer
        model = make_clip(plan, tokenizer)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(plan.folder)
        model = CLIPModel.from_pretrained(plan.folder, torch_dtype=torch.float32)
    for phase in phases:
        run_phase(f"{name} {phase}", plan, PHASES[phase], model, tokenizer)
