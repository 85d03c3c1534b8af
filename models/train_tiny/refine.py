"""Stage ``refine``: train the autoencoder's decoder on while its encoder, and so the latents, stay fixed."""

from __future__ import annotations

import time

import numpy as np
import torch
from diffusers import AutoencoderKL

from models.compose import compose_many
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.paths import SD_FOLDER
from models.train_tiny.vae import BATCH, learning_rate, picture_loss, save

SEED = 13
LEARNING_RATE = 1e-3
# Standard deviation of the noise on the (unit-variance) latents: a sampler's latents are never exact.
LATENT_NOISE = 0.1


def run(steps: int) -> None:
    """Train the decoder for ``steps`` batches of 8 pictures and write ``models/tiny-sd/vae`` again."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    vae = AutoencoderKL.from_pretrained(SD_FOLDER / "vae", torch_dtype=torch.float32)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, LEARNING_RATE)
        pictures = to_tensor(compose_many([random_scene(rng) for _ in range(BATCH)], rng))
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.sample()
            latents += LATENT_NOISE * torch.randn_like(latents)
        loss, absolute = picture_loss(vae.decode(latents).sample, pictures)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - start
            print(
                f"refine step {step} loss {loss.item():.4f} absolute {absolute:.4f} {seconds:.0f} s",
                flush=True,
            )
    save(vae, SD_FOLDER / "vae")
