"""Stage ``vae``: train the autoencoder of ``models/tiny-sd`` on composed training pictures."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from models.compose import compose_many
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.paths import SD_FOLDER

LATENT_CHANNELS = 16
BATCH = 8
LEARNING_RATE = 1.5e-3
KL_WEIGHT = 1e-3
SEED = 11


def make_vae() -> AutoencoderKL:
    """A factor-8 autoencoder, thin where the picture is large: 64 x 64 x 3 <-> 8 x 8 x 16."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def _edges(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def picture_loss(output: torch.Tensor, pictures: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Absolute and squared error plus the absolute error of the edges; also the absolute error alone."""
    absolute = functional.l1_loss(output, pictures)
    (across, down), (true_across, true_down) = _edges(output), _edges(pictures)
    edges = functional.l1_loss(across, true_across) + functional.l1_loss(down, true_down)
    return absolute + functional.mse_loss(output, pictures) + edges, float(absolute.detach())


def loss_of(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The picture loss of the reconstruction plus the weighted KL, and the absolute error alone."""
    posterior = vae.encode(pictures).latent_dist
    loss, absolute = picture_loss(vae.decode(posterior.sample()).sample, pictures)
    return loss + KL_WEIGHT * posterior.kl().sum() / pictures.numel(), absolute


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 200) -> float:
    """Linear warm-up, then half a cosine down to 2 % of ``peak``."""
    decay = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * decay)


@torch.no_grad()
def standardise(vae: AutoencoderKL, rng: np.random.Generator, pictures: int = 1024) -> None:
    """Give every latent channel zero mean and unit deviation by rescaling the two 1 x 1 convolutions.

    What the autoencoder reconstructs stays the same; the pipeline only knows one scaling factor for all
    channels, which so stays 1.
    """
    batch = to_tensor(compose_many([random_scene(rng) for _ in range(pictures)], rng))
    modes = torch.cat([vae.encode(part).latent_dist.mode() for part in batch.split(64)])
    mean, deviation = modes.mean((0, 2, 3)), modes.std((0, 2, 3))
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    encoder.weight[:LATENT_CHANNELS] /= deviation[:, None, None, None]
    encoder.bias[:LATENT_CHANNELS].sub_(mean).div_(deviation)
    encoder.bias[LATENT_CHANNELS:] -= 2 * deviation.log()
    decoder.bias += (decoder.weight[:, :, 0, 0] * mean).sum(1)
    decoder.weight *= deviation[None, :, None, None]


def save(vae: AutoencoderKL, folder: Path) -> None:
    """Write the autoencoder's float16 weights and its configuration."""
    half = make_vae().half()
    half.load_state_dict(vae.state_dict())
    half.save_pretrained(folder)


def run(steps: int) -> None:
    """Train for ``steps`` batches of 8 pictures and write ``models/tiny-sd/vae``."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    vae = make_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, LEARNING_RATE)
        loss, absolute = loss_of(vae, to_tensor(compose_many([random_scene(rng) for _ in range(BATCH)], rng)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - start
            print(
                f"vae step {step} loss {loss.item():.4f} absolute {absolute:.4f} {seconds:.0f} s", flush=True
            )
    standardise(vae, rng)
    save(vae, SD_FOLDER / "vae")
