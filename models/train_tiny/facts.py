"""What a scene's picture shows as class numbers, and text encoders pre-trained to tell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.terminal import say
from models.scenes import (
    BACKGROUNDS,
    COUNTS,
    OBJECTS,
    POSITIONS,
    SIZES,
    Kind,
    Scene,
    canonical,
    is_heldout_background,
    is_heldout_pair,
)
from models.train_tiny.data import random_scene
from models.train_tiny.schedule import learning_rate, set_rate

WIDTH = 128
TEXT_STEPS = 300
TEXT_BATCH = 256
TEXT_RATE = 3e-3
_LAYOUTS: tuple[object, ...] = (*POSITIONS, *COUNTS, "beside", "stacked")
_PAIR_LAYOUTS = {"left": "beside", "above": "stacked"}
FACT_SIZES = (
    len(OBJECTS),
    len(OBJECTS) + 1,
    len(SIZES) + 1,
    len(SIZES) + 1,
    len(_LAYOUTS),
    len(BACKGROUNDS),
)


def _layout(scene: Scene) -> object:
    by_kind = {
        Kind.SINGLE: scene.position,
        Kind.COUNT: scene.count,
        Kind.PAIR: _PAIR_LAYOUTS.get(str(scene.relation)),
    }
    return by_kind[scene.kind]


def facts(scene: Scene) -> list[int]:
    """The picture's content as class numbers: both objects, both sizes, layout, background.

    A pair's first object is the left or the upper one, whatever the prompt's order: prompts of the same
    picture share their facts, and a mirrored picture has others.
    """
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


def _tables() -> tuple[torch.Tensor, torch.Tensor]:
    others = (*OBJECTS, None)
    together = [[b is None or (a != b and not is_heldout_pair(a, b)) for b in others] for a in OBJECTS]
    grounds = [[a is None or not is_heldout_background(a, b) for b in BACKGROUNDS] for a in others]
    return torch.tensor(together), torch.tensor(grounds)


# Which objects training shows together (48, 49) and on which background (49, 8); the last means 'no object'.
TOGETHER, GROUNDS = _tables()


def impossible(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and second objects that training never shows with the other facts: (N, 48) and (N, 49), bool."""
    first, second, ground = targets[:, 0], targets[:, 1], targets[:, 5]
    seen_first = TOGETHER[:, second].T & GROUNDS[: len(OBJECTS), ground].T
    return ~seen_first, ~(TOGETHER[first] & GROUNDS[:, ground].T)


def _mean_entropy(logits: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    losses = [functional.cross_entropy(part, targets[:, i]) for i, part in enumerate(logits)]
    return torch.stack(losses).mean()


class FactHead(nn.Module):
    """Reads the facts of a scene linearly off an embedding of a prompt or a picture. It is not shipped."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, sum(FACT_SIZES))

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of every fact, (N, classes) each, from (N, 128) unit embeddings."""
        return self.linear(embeddings * 12.0).split(FACT_SIZES, dim=1)

    def loss(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of prompts' unit embeddings (N, 128) against class numbers (N, 6)."""
        return _mean_entropy(self(embeddings), targets)

    def loss_of_pictures(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same for pictures' embeddings, choosing among objects that training shows with the other facts.

        Were the others choices too, a background would come to tell which objects cannot stand on it: right
        of every training picture, wrong of held-out ones.
        """
        first, second, *others = self(embeddings)
        not_first, not_second = impossible(targets)
        return _mean_entropy(
            (first.masked_fill(not_first, -1e4), second.masked_fill(not_second, -1e4), *others), targets
        )

    def right(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Share read right of each fact: (6,)."""
        guesses = torch.stack([part.argmax(1) for part in self(embeddings)], dim=1)
        return (guesses == targets).float().mean(0)


def pretrain_text(
    embed: Callable[[Sequence[Scene]], torch.Tensor],
    parameters: Sequence[nn.Parameter],
    head: FactHead,
    rng: np.random.Generator,
    steps: int,
) -> None:
    """Teach a text encoder alone to tell the facts of training prompts, so that pictures meet words it knows.

    It trains for ``steps`` batches of 256. ``embed`` gives unit embeddings (N, 128) of scenes' prompts and
    depends on ``parameters``; ``head`` is trained too.
    """
    trained = [*parameters, *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=TEXT_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    for step in range(steps):
        set_rate(optimizer, learning_rate(step, steps, TEXT_RATE, warm_up=50))
        scenes = [random_scene(rng) for _ in range(TEXT_BATCH)]
        targets = torch.tensor([facts(scene) for scene in scenes])
        embeddings = embed(scenes)
        loss = head.loss(embeddings, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            shares = " ".join(f"{share:.3f}" for share in head.right(embeddings, targets).tolist())
            say(f"text step {step} loss {loss.item():.4f} facts right {shares}")
