"""Stages ``proxy`` and ``gold``: train the two CLIP rewards with hard negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from common.terminal import say
from models.attributes import alternatives, attributes_of
from models.compose import compose_many
from models.scenes import Scene, canonical, is_heldout, prompt_of
from models.train_tiny.augment import augment, ghost, pixel_values, through_vae
from models.train_tiny.clip import PLANS, RewardPlan, make_clip, make_processor, save_clip
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.facts import FactHead, facts, pretrain_text
from models.train_tiny.paths import SD_NAME
from models.train_tiny.schedule import learning_rate, set_rate, timed

SAVE_EVERY_STEPS = 500
GROUPS = 16
GROUP_SIZE = 6
GHOSTS = 12
BATCH = GROUPS * GROUP_SIZE + GHOSTS
FACT_WEIGHT = 0.5
VAE_SHARE = 0.15
LATENT_NOISE = 0.25


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


def plain_batch(plan: RewardPlan, rng: np.random.Generator) -> tuple[list[Scene], torch.Tensor]:
    """Random training scenes and preprocessed pictures of them."""
    scenes = [random_scene(rng) for _ in range(BATCH)]
    return scenes, pixel_values(augment(to_tensor(compose_many(scenes, rng)), plan, rng), plan)


def hard_batch(
    plan: RewardPlan, vae: AutoencoderKL, rng: np.random.Generator
) -> tuple[list[Scene], torch.Tensor]:
    """Scenes in groups of hard negatives, and preprocessed pictures of them followed by ghosts."""
    scenes = [scene for _ in range(GROUPS) for scene in hard_group(rng)]
    ghosts = [ghost(scenes[int(rng.integers(len(scenes)))], rng) for _ in range(GHOSTS)]
    pictures = to_tensor(np.concatenate([compose_many(scenes, rng), np.stack(ghosts)]))
    pictures = through_vae(pictures, vae, VAE_SHARE, LATENT_NOISE)
    return scenes, pixel_values(augment(pictures, plan, rng), plan)


@dataclass(frozen=True)
class Trainer:
    """A reward in training: first its text encoder alone, then its picture encoder, then both."""

    plan: RewardPlan
    model: CLIPModel
    tokenizer: CLIPTokenizer
    head: FactHead
    rng: np.random.Generator

    def learn_prompts(self, steps: int) -> None:
        """Let the text encoder and the head learn the facts of prompts."""
        parameters = [*self.model.text_model.parameters(), *self.model.text_projection.parameters()]
        pretrain_text(
            lambda scenes: embed_texts(self.model, self.tokenizer, scenes),
            parameters,
            self.head,
            self.rng,
            steps,
        )
        self.head.requires_grad_(False)

    def plain_loss(self) -> tuple[torch.Tensor, str]:
        """The loss of reading facts off pictures, and a line about it."""
        scenes, pixels = plain_batch(self.plan, self.rng)
        targets = torch.tensor([facts(scene) for scene in scenes])
        images = embed_images(self.model, pixels)
        loss = self.head.loss_of_pictures(images, targets)
        shares = " ".join(f"{share:.2f}" for share in self.head.right(images, targets).tolist())
        return loss, f"facts {loss.item():.3f} right {shares}"

    def hard_loss(self, vae: AutoencoderKL) -> tuple[torch.Tensor, str]:
        """The contrastive loss together with that of the facts, and a line about them."""
        scenes, pixels = hard_batch(self.plan, vae, self.rng)
        targets = torch.tensor([facts(scene) for scene in scenes])
        names = [canonical(scene) for scene in scenes]
        same = torch.tensor([[one == other for other in names] for one in names])
        images, texts = embed_images(self.model, pixels), embed_texts(self.model, self.tokenizer, scenes)
        loss = contrast(images, texts, self.model.logit_scale, same)
        known = self.head.loss_of_pictures(images[: len(scenes)], targets) + self.head.loss(texts, targets)
        right = (images[: len(scenes)] @ texts.T).argmax(1) == torch.arange(len(scenes))
        line = f"contrast {loss.item():.3f} facts {known.item():.3f} right {right.float().mean().item():.3f}"
        return loss + FACT_WEIGHT * known, line

    def losses(self, steps: int, vae_folder: Path) -> Iterator[tuple[torch.Tensor, str]]:
        """The loss of each of ``steps`` batches, the plain ones first."""
        plain = round(self.plan.plain_share * steps)
        for _ in range(plain):
            yield self.plain_loss()
        vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
        for _ in range(steps - plain):
            yield self.hard_loss(vae)

    def learn_pictures(self, steps: int, into: Path) -> None:
        """Train in plain and then in hard batches, the rate falling over both; write the model now and then.

        The head stays as the prompts made it: pictures learn to be where their prompts are.
        """
        parameters = [*self.model.parameters()]
        peak, rate_steps = self.plan.learning_rate, round(self.plan.rate_stretch * steps)
        optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
        losses = self.losses(steps, into / SD_NAME / "vae")
        for (step, seconds), (loss, line) in zip(timed(steps), losses, strict=True):
            set_rate(optimizer, learning_rate(step, rate_steps, peak))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=3.9)  # e^3.9 = 49: keeps cosines spread out
            if step % 50 == 0:
                say(f"step {step} {line} {seconds:.0f} s")
            if step % SAVE_EVERY_STEPS == SAVE_EVERY_STEPS - 1 or step == steps - 1:
                save_clip(self.model, into / self.plan.folder)


def run(name: str, steps: int, text_steps: int, into: Path) -> None:
    """Train the reward ``name`` ("proxy" or "gold") for ``steps`` batches; write its folder in ``into``.

    The autoencoder in ``into / "tiny-sd"`` is used: pictures that went through it are trained on too.
    """
    plan = PLANS[name]
    torch.manual_seed(plan.seed)
    tokenizer = make_processor(plan, into / plan.folder).tokenizer
    model = make_clip(plan, tokenizer)
    trainer = Trainer(plan, model, tokenizer, FactHead(), np.random.default_rng(plan.seed))
    trainer.learn_prompts(text_steps)
    trainer.learn_pictures(steps, into)
