"""Stage ``vae``: train the autoencoder of ``models/tiny-sd`` to invert, and to compute, the latent code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch.nn import functional

from common.terminal import say
from models.compose import compose_many
from models.train_tiny.code import CHANNELS, patch_code
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.paths import SD_NAME, let_everyone_read
from models.train_tiny.schedule import learning_rate, set_rate, timed

BATCH = 8
STEPS = 9000
DECODER_RATE = 2e-3
ENCODER_RATE = 2e-3
# Deviation of the noise on the unit-variance latents in decoder training: a sampler is never exact.
LATENT_NOISE = 0.08
LOG_VARIANCE = -8.0
SEED = 11


def make_vae() -> AutoencoderKL:
    """A factor-8 autoencoder, thin where the picture is large: 64 x 64 x 3 <-> 8 x 8 x 24."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=CHANNELS,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def _point_layers(vae: AutoencoderKL) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The 1 x 1 convolutions after the encoder and before the decoder."""
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise ValueError("this autoencoder has no convolutions around its latents")
    return vae.quant_conv, vae.post_quant_conv


@torch.no_grad()
def initialise(vae: AutoencoderKL) -> None:
    """Let signals keep their size through the network and start residual branches small.

    With the library's defaults a thin autoencoder needs many times the steps: the signal fades from layer
    to layer until the normalisations only see biases.
    """
    for name, layer in vae.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer.bias is not None:
            layer.bias.zero_()
        branch = name.endswith(("conv1", "conv2"))
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if branch else "linear")
        if name.endswith("conv2"):
            layer.weight *= 0.1
    vae.decoder.conv_out.weight *= 0.3
    into, out_of = _point_layers(vae)
    nn.init.eye_(out_of.weight[:, :, 0, 0])
    into.weight.zero_()
    into.weight[:CHANNELS, :CHANNELS, 0, 0].fill_diagonal_(1.0)
    if into.bias is not None:
        into.bias[CHANNELS:] = LOG_VARIANCE


def save(vae: AutoencoderKL, folder: Path) -> None:
    """Write the autoencoder's float16 weights and its configuration."""
    half = make_vae().half()
    half.load_state_dict(vae.state_dict())
    half.save_pretrained(folder)
    let_everyone_read(folder)


def _pictures(rng: np.random.Generator) -> torch.Tensor:
    return to_tensor(compose_many([random_scene(rng) for _ in range(BATCH)], rng))


def train_decoder(vae: AutoencoderKL, rng: np.random.Generator, steps: int) -> None:
    """Teach the decoder to turn slightly noisy latents of the code into their pictures."""
    code = patch_code()
    parameters = [*vae.decoder.parameters(), *_point_layers(vae)[1].parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=DECODER_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
    for step, seconds in timed(steps):
        set_rate(optimizer, learning_rate(step, steps, DECODER_RATE, warm_up=50))
        pictures = _pictures(rng)
        latents = code.encode(pictures)
        output = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        absolute, squared = functional.l1_loss(output, pictures), functional.mse_loss(output, pictures)
        optimizer.zero_grad(set_to_none=True)
        (absolute + 2 * squared).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            say(f"decoder step {step} absolute {absolute:.4f} squared {squared:.5f} {seconds:.0f} s")


def train_encoder(vae: AutoencoderKL, rng: np.random.Generator, steps: int) -> None:
    """Teach the encoder's mean to compute the code; its deviation is constant."""
    code = patch_code()
    parameters = [*vae.encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=ENCODER_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
    for step, seconds in timed(steps):
        set_rate(optimizer, learning_rate(step, steps, ENCODER_RATE, warm_up=50))
        pictures = _pictures(rng)
        loss = functional.mse_loss(vae.encode(pictures).latent_dist.mode(), code.encode(pictures))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            say(f"encoder step {step} squared {loss.item():.4f} {seconds:.0f} s")


def run(steps: int, into: Path) -> None:
    """Train for ``steps`` batches of 8 pictures; write ``tiny-sd/vae`` in the folder ``into``.

    A fifth of the steps goes to the encoder, which sampling from prompts never uses.
    """
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    vae = make_vae()
    initialise(vae)
    train_decoder(vae, rng, steps * 4 // 5)
    train_encoder(vae, rng, steps // 5)
    save(vae, into / SD_NAME / "vae")
