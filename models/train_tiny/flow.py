"""Stage ``flow``: train the transformer of ``models/tiny-sd3`` on flow matching, and assemble its pipeline.

Pictures become latents by the linear code that the VAE inverts. Both text encoders are frozen, as they are in
Stable Diffusion 3: the first is that of ``tiny-sd``, the second learns only to tell the facts of prompts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from common.terminal import say
from models.compose import compose_many
from models.older_files import prefix_text_tensors
from models.scenes import Scene, prompt_of
from models.tokenizer import MAX_LENGTH
from models.train_tiny.base import TEXT_WIDTH, tokenise
from models.train_tiny.clip import grid_waves
from models.train_tiny.code import CHANNELS, patch_code
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.facts import WIDTH, FactHead, pretrain_text
from models.train_tiny.paths import FLOW_NAME, SD_NAME, let_everyone_read
from models.train_tiny.schedule import learning_rate, set_rate, timed

SEED = 61
BATCH = 16
STEPS = 16_000
LEARNING_RATE = 2e-3
# The rate stays at its peak for this share of the steps.
PEAK_SHARE = 0.7
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
SAVE_EVERY_STEPS = 500
SECOND_WIDTH = 64
TRANSFORMER_WIDTH, LAYERS, HEADS, PATCH_SIZE = 96, 6, 3, 1
# Without a T5 encoder diffusers puts up to 256 rows of zeros behind the text. So that pictures hardly depend
# on how many, one batch in sixteen is trained with some; all with them would take several times as long.
ZERO_ROWS, ZERO_ROWS_EVERY = 64, 16


def make_transformer() -> SD3Transformer2DModel:
    """A fresh MMDiT over 8 x 8 x 24 latents, with normalised queries and keys as in Stable Diffusion 3.5.

    The gates of all residual branches and the output start at zero (adaLN-Zero, Peebles and Xie 2023), which
    the library leaves to whoever trains. Its positions are meant for large grids: of eight places in a row
    only a few of its waves tell much, so there are waves of the grid's own length instead.
    """
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=PATCH_SIZE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=TRANSFORMER_WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH + SECOND_WIDTH,
        caption_projection_dim=TRANSFORMER_WIDTH,
        pooled_projection_dim=TEXT_WIDTH + WIDTH,
        pos_embed_max_size=8 // PATCH_SIZE,
        qk_norm="rms_norm",
    )
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            if name == "proj_out" or "norm" in name:
                nn.init.zeros_(layer.weight)
    transformer.pos_embed.pos_embed.copy_(grid_waves(8 // PATCH_SIZE, TRANSFORMER_WIDTH)[None])
    return transformer


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps of the flow, unshifted: 64 latents are too few to need more steps at high noise."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def _text_encoder(
    tokenizer: CLIPTokenizer, width: int, layers: int, projection: int
) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=projection,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def first_text_encoder(tokenizer: CLIPTokenizer, tiny_sd: Path) -> CLIPTextModelWithProjection:
    """The text encoder in the folder ``tiny_sd``, with the identity for a projection."""
    encoder = _text_encoder(tokenizer, TEXT_WIDTH, 3, TEXT_WIDTH)
    trained = type(encoder).from_pretrained(tiny_sd / "text_encoder", torch_dtype=torch.float32).text_model
    encoder.text_model.load_state_dict(trained.state_dict())
    nn.init.eye_(encoder.text_projection.weight)
    return encoder


def second_text_encoder(
    tokenizer: CLIPTokenizer, rng: np.random.Generator, text_steps: int
) -> CLIPTextModelWithProjection:
    """A smaller text encoder that has learnt in ``text_steps`` batches to tell the facts of prompts."""
    encoder = _text_encoder(tokenizer, SECOND_WIDTH, 2, WIDTH)

    def embed(scenes: Sequence[Scene]) -> torch.Tensor:
        tokens = tokenise(tokenizer, [prompt_of(scene) for scene in scenes])
        return functional.normalize(encoder(tokens).text_embeds, dim=-1)

    pretrain_text(embed, list(encoder.parameters()), FactHead(), rng, text_steps)
    return encoder


def make_pipeline(into: Path, text_steps: int) -> StableDiffusion3Pipeline:
    """The pipeline, its transformer untrained, its other parts of ``tiny-sd`` in the folder ``into``."""
    torch.manual_seed(SEED)
    tokenizer = CLIPTokenizer.from_pretrained(into / SD_NAME / "tokenizer")
    second = second_text_encoder(tokenizer, np.random.default_rng(SEED), text_steps)
    # The pipeline shifts what it decodes. Its weights are not needed here: ``save`` copies them.
    vae = {**AutoencoderKL.load_config(into / SD_NAME / "vae"), "shift_factor": 0.0}
    torch.manual_seed(SEED)
    return StableDiffusion3Pipeline(
        transformer=make_transformer(),
        scheduler=make_scheduler(),
        vae=AutoencoderKL.from_config(vae),
        text_encoder=first_text_encoder(tokenizer, into / SD_NAME).requires_grad_(False),
        tokenizer=tokenizer,
        text_encoder_2=second.requires_grad_(False),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def random_sigmas(count: int) -> torch.Tensor:
    """Noise levels (count,) in 0..1, logit-normal (mean 0, deviation 1; Esser et al. 2024, equation 19).

    One falls into each of ``count`` parts of equal probability, in random order.
    """
    uniform = (torch.randperm(count) + torch.rand(count)) / count
    return torch.special.ndtri(uniform).sigmoid()


def rate_at(step: int, steps: int) -> float:
    """The learning rate of a step: a warm-up, LEARNING_RATE for PEAK_SHARE of the steps, then half a cosine
    down to 2 % of it."""
    held = PEAK_SHARE * steps
    if step < held:
        return LEARNING_RATE * min(1.0, (step + 1) / 200)
    return learning_rate(step - held, steps - held, LEARNING_RATE, warm_up=1)


@dataclass(frozen=True)
class Trainer:
    """The pipeline's transformer with its optimizer and moving averages."""

    pipeline: StableDiffusion3Pipeline
    transformer: SD3Transformer2DModel
    averages: list[torch.Tensor]
    optimizer: torch.optim.Optimizer

    @classmethod
    def fresh(cls, pipeline: StableDiffusion3Pipeline) -> Trainer:
        """A trainer of the pipeline's transformer as it is."""
        transformer = pipeline.transformer
        averages = [parameter.detach().clone() for parameter in transformer.parameters()]
        optimizer = torch.optim.AdamW(
            transformer.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        return cls(pipeline, transformer, averages, optimizer)

    def step(self, prompts: list[str], latents: torch.Tensor, rate: float, number: int) -> float:
        """One optimizer step on the flow from ``latents`` (N, 24, 8, 8) to noise; returns the mean squared
        error of the velocity, noise - latents."""
        set_rate(self.optimizer, rate)
        zero_rows = ZERO_ROWS if number % ZERO_ROWS_EVERY == 0 else 0
        with torch.no_grad():
            states, _, pooled, _ = self.pipeline.encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=zero_rows
            )
        sigmas, noise = random_sigmas(len(latents)), torch.randn_like(latents)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None, None])
        velocity = self.transformer(noisy, states, pooled, 1000 * sigmas).sample
        loss = functional.mse_loss(velocity, noise - latents)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), 1.0)
        self.optimizer.step()
        decay = min(EMA_DECAY, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, list(self.transformer.parameters()), 1 - decay)
        return loss.item()

    def keep(self, path: Path, next_step: int) -> None:
        """Write all that the training goes on from to ``path``, at once or not at all."""
        networks = (self.transformer.state_dict(), self.pipeline.text_encoder_2.state_dict())
        state = (next_step, *networks, self.averages, self.optimizer.state_dict())
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def go_on(self, path: Path) -> int:
        """Take up what ``keep`` wrote to ``path``, if that exists; returns the number of the next step."""
        if not path.exists():
            return 0
        next_step, transformer, second, averages, optimizer = torch.load(path)
        self.transformer.load_state_dict(transformer)
        self.pipeline.text_encoder_2.load_state_dict(second)
        torch._foreach_copy_(self.averages, averages)
        self.optimizer.load_state_dict(optimizer)
        return int(next_step)

    def save(self, folder: Path, tiny_sd: Path) -> None:
        """Write the pipeline with the averaged weights, all in float16, to ``folder``."""
        shipped = make_transformer()
        with torch.no_grad():
            torch._foreach_copy_(list(shipped.parameters()), self.averages)
        shipped.half().save_pretrained(folder / "transformer")
        for name in ("text_encoder", "text_encoder_2"):
            encoder = self.pipeline.components[name]
            half = CLIPTextModelWithProjection(encoder.config)
            half.load_state_dict(encoder.state_dict())
            half.half().save_pretrained(folder / name)
            prefix_text_tensors(folder / name / "model.safetensors")
        self.pipeline.vae.save_config(folder / "vae")
        shutil.copy(tiny_sd / "vae" / "diffusion_pytorch_model.safetensors", folder / "vae")
        for name in ("tokenizer", "tokenizer_2"):
            shutil.copytree(tiny_sd / "tokenizer", folder / name, dirs_exist_ok=True)
        self.pipeline.scheduler.save_pretrained(folder / "scheduler")
        self.pipeline.save_config(folder)
        for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
            let_everyone_read(folder / part)


def run(steps: int, text_steps: int, into: Path) -> None:
    """Train for ``steps`` batches of 16; write ``tiny-sd3`` in the folder ``into``, which holds ``tiny-sd``.

    A run that was stopped goes on from its last checkpoint, to the same bytes: all chance of a step comes
    from its number.
    """
    checkpoint = into / f"{FLOW_NAME}.training"
    pipeline = make_pipeline(into, 0 if checkpoint.exists() else text_steps)
    code, trainer = patch_code(), Trainer.fresh(pipeline)
    first = trainer.go_on(checkpoint)
    average: float | None = None
    for step, seconds in timed(steps):
        if step < first:
            continue
        rng = np.random.default_rng((SEED, step))
        torch.manual_seed(SEED * 1_000_000 + step)
        scenes = [random_scene(rng) for _ in range(BATCH)]
        latents = code.encode(to_tensor(compose_many(scenes, rng)))
        dropped = rng.random(BATCH) < CAPTION_DROPOUT
        prompts = ["" if drop else prompt_of(scene) for scene, drop in zip(scenes, dropped, strict=True)]
        loss = trainer.step(prompts, latents, rate_at(step, steps), step)
        average = loss if average is None else average + 0.01 * (loss - average)
        if step % 50 == 0:
            say(f"flow step {step} loss {average:.4f} {seconds:.0f} s")
        if step % SAVE_EVERY_STEPS == SAVE_EVERY_STEPS - 1:
            trainer.keep(checkpoint, step + 1)
    trainer.save(into / FLOW_NAME, into / SD_NAME)
    checkpoint.unlink(missing_ok=True)
