"""CLIP, BLIP and their image preparation once more, by hand, from tensors under their original names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

PROMPTS = ["a red cat", "two blue dogs near a tree", "a red cat", "sun"]
BLACK = np.zeros((1, 8, 8, 3), dtype=np.uint8)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
Tensors = dict[str, torch.Tensor]
Image8 = NDArray[np.uint8]
MakeImages = Callable[[int, int], NDArray[np.uint8]]


def as_input(pixels: NDArray[np.floating]) -> torch.Tensor:
    """An image in 0..1, (size, size, 3) -> normalised float32 (1, 3, size, size)."""
    return torch.from_numpy(((pixels - MEAN) / DEVIATION).transpose(2, 0, 1)[None]).float()


def cropped(image: Image8, size: int) -> torch.Tensor:
    """Shorter side to size by PIL, the middle square, normalised."""
    height, width = image.shape[:2]
    wide, high = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    small = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = round((high - size) / 2.0), round((wide - size) / 2.0)
    return as_input(small[top : top + size, left : left + size] / 255.0)


def letterboxed(image: Image8, size: int) -> torch.Tensor:
    """Longer side to size by PIL on float numbers, black bars, normalised."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    wide, high = round(width * scale), round(height * scale)
    square = np.zeros((size, size, 3))
    top, left = (size - high) // 2, (size - wide) // 2
    for channel in range(3):
        plane = Image.fromarray(image[..., channel].astype(np.float32) / 255.0)
        small = np.asarray(plane.resize((wide, high), Image.Resampling.BICUBIC))
        square[top : top + high, left : left + wide, channel] = small
    return as_input(square)


def cubic(values: NDArray[np.floating], count: int) -> NDArray[np.floating]:
    """The first axis resampled to `count` by cubic convolution (a = -0.75) without smoothing."""

    def weight(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1.0:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2.0 else 0.0

    rows = []
    for row in range(count):
        place = (row + 0.5) * len(values) / count - 0.5
        near = [int(np.floor(place)) + step for step in (-1, 0, 1, 2)]
        rows.append(sum(weight(place - at) * values[min(max(at, 0), len(values) - 1)] for at in near))
    return np.array(rows)


def clip_cosines(
    folder: Path, prompts: list[str], images: Image8, tokens: Path | None = None
) -> NDArray[np.float64]:
    """One image and prompt at a time: the logit of transformers' whole CLIPModel over its scale."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tokens or folder)
    cosines = []
    for prompt, image in zip(prompts, images, strict=True):
        numbers = torch.tensor([tokenizer(prompt, truncation=True, max_length=40)["input_ids"]])
        with torch.no_grad():
            output = model(input_ids=numbers, pixel_values=cropped(image, 32))
            cosines.append(float(output.logits_per_image / model.logit_scale.exp()))
    return np.array(cosines)


def open_clip_cosine(
    tensors: Tensors, pixels: torch.Tensor, tokens: list[int], heads: tuple[int, int]
) -> float:
    """Cosine of an image (1, 3, S, S) and tokens up to the end token. heads: of image and text tower."""
    x = functional.conv2d(
        pixels, tensors["visual.conv1.weight"], stride=tensors["visual.conv1.weight"].shape[-1]
    )
    x = torch.cat([tensors["visual.class_embedding"].view(1, -1), x.flatten(2)[0].T])
    x = _norm(x + tensors["visual.positional_embedding"], tensors, "visual.ln_pre")
    x = _transformer(x, tensors, "visual.", heads[0], torch.zeros(len(x), len(x)))
    of_image = _norm(x[0], tensors, "visual.ln_post") @ tensors["visual.proj"]
    y = tensors["token_embedding.weight"][tokens] + tensors["positional_embedding"][: len(tokens)]
    y = _transformer(y, tensors, "", heads[1], torch.full((len(y), len(y)), -torch.inf).triu(1))
    of_text = _norm(y[-1], tensors, "ln_final") @ tensors["text_projection"]
    return float(functional.cosine_similarity(of_image, of_text, dim=0))


def _transformer(
    x: torch.Tensor, tensors: Tensors, start: str, heads: int, mask: torch.Tensor
) -> torch.Tensor:
    depth = len(
        {name for name in tensors if name.startswith(f"{start}transformer.resblocks.") and "ln_1.w" in name}
    )
    for number in range(depth):
        block = f"{start}transformer.resblocks.{number}"
        q, k, v = _linear(_norm(x, tensors, f"{block}.ln_1"), tensors, f"{block}.attn.in_proj", "_").chunk(
            3, -1
        )
        x = x + _linear(_attend(q, k, v, heads, mask), tensors, f"{block}.attn.out_proj")
        inner = functional.gelu(_linear(_norm(x, tensors, f"{block}.ln_2"), tensors, f"{block}.mlp.c_fc"))
        x = x + _linear(inner, tensors, f"{block}.mlp.c_proj")
    return x


def imagereward(tensors: Tensors, pixels: torch.Tensor, tokens: list[int], heads: tuple[int, int]) -> float:
    """ImageReward's number of an image (1, 3, S, S) and tokens without padding."""
    seen = _blip_image({k[len("blip.visual_encoder.") :]: v for k, v in tensors.items()}, pixels, heads[0])
    text = {k[len("blip.text_encoder.") :]: v for k, v in tensors.items() if "text_encoder" in k}
    x = text["embeddings.word_embeddings.weight"][tokens]
    x = x + text["embeddings.position_embeddings.weight"][: len(tokens)]
    x = _norm(x, text, "embeddings.LayerNorm", 1e-12)
    for number in range(len([name for name in text if name.endswith("intermediate.dense.weight")])):
        layer = f"encoder.layer.{number}"
        for kind, keys in (("attention", None), ("crossattention", seen)):
            place = f"{layer}.{kind}"
            source = x if keys is None else keys
            q = _linear(x, text, f"{place}.self.query")
            k, v = (_linear(source, text, f"{place}.self.{part}") for part in ("key", "value"))
            met = _attend(q, k, v, heads[1], torch.zeros(len(x), len(source)))
            x = _norm(
                _linear(met, text, f"{place}.output.dense") + x, text, f"{place}.output.LayerNorm", 1e-12
            )
        inner = functional.gelu(_linear(x, text, f"{layer}.intermediate.dense"))
        x = _norm(_linear(inner, text, f"{layer}.output.dense") + x, text, f"{layer}.output.LayerNorm", 1e-12)
    return (head(tensors, "mlp.layers", x[0].double().numpy()) - 0.16717362830052426) / 1.0333394966054072


def head(tensors: Tensors, start: str, values: NDArray[np.floating]) -> float:
    """The five linear layers, by numpy."""
    for number in (0, 2, 4, 6, 7):
        weight, bias = tensors[f"{start}.{number}.weight"], tensors[f"{start}.{number}.bias"]
        values = weight.double().numpy() @ values + bias.double().numpy()
    return float(values[0])


def _blip_image(tensors: Tensors, pixels: torch.Tensor, heads: int) -> torch.Tensor:
    weight = tensors["patch_embed.proj.weight"]
    x = functional.conv2d(pixels, weight, tensors["patch_embed.proj.bias"], stride=weight.shape[-1])
    x = torch.cat([tensors["cls_token"][0], x.flatten(2)[0].T]) + tensors["pos_embed"][0]
    for number in range(len([name for name in tensors if name.endswith("attn.qkv.weight")])):
        block = f"blocks.{number}"
        q, k, v = _linear(_norm(x, tensors, f"{block}.norm1", 1e-6), tensors, f"{block}.attn.qkv").chunk(
            3, -1
        )
        x = x + _linear(_attend(q, k, v, heads, torch.zeros(len(x), len(x))), tensors, f"{block}.attn.proj")
        inner = _linear(_norm(x, tensors, f"{block}.norm2", 1e-6), tensors, f"{block}.mlp.fc1")
        x = x + _linear(functional.gelu(inner), tensors, f"{block}.mlp.fc2")
    return _norm(x, tensors, "norm", 1e-6)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor
) -> torch.Tensor:
    met = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        met.append(torch.softmax(a @ b.T / a.shape[-1] ** 0.5 + mask, dim=-1) @ c)
    return torch.cat(met, dim=-1)


def _linear(x: torch.Tensor, tensors: Tensors, name: str, joint: str = ".") -> torch.Tensor:
    return x @ tensors[f"{name}{joint}weight"].T + tensors[f"{name}{joint}bias"]


def _norm(x: torch.Tensor, tensors: Tensors, name: str, epsilon: float = 1e-5) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)
