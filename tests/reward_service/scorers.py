"""Scorers for the tests, importable by a replica as tests.reward_service.scorers:Name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Numbers = NDArray[np.float64]


class Redness:
    """Mean of the red channel, 0..1."""

    version = "1"
    digest = ""

    def score(self, prompts: list[str], images: Images) -> Numbers:
        return images[..., 0].mean(axis=(1, 2)) / 255.0


class PromptLength:
    """Letters of the prompt times a scale, plus the image's blueness."""

    version = "2"

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.digest = f"scale-{scale}"

    def score(self, prompts: list[str], images: Images) -> Numbers:
        blue = images[..., 2].mean(axis=(1, 2)) / 255.0
        return self.scale * np.array([len(prompt) for prompt in prompts]) + blue


class Constant:
    """Never tells two images apart."""

    version, digest = "1", ""

    def score(self, prompts: list[str], images: Images) -> Numbers:
        return np.full(len(images), 0.5)


class Lookup(Redness):
    """Redness times what a table says about the prompt: it fails on prompts that it does not know."""

    check_prompts: tuple[str, ...] = ("two cats", "a dog left of a cat")

    def score(self, prompts: list[str], images: Images) -> Numbers:
        table = {"two cats": 2.0, "a dog left of a cat": 1.0, "a bench": 3.0}
        return super().score(prompts, images) * np.array([table[prompt] for prompt in prompts])


class GreenDuel:
    """A judge that compares images only: tanh of the difference of their greenness."""

    version = "1"
    digest = ""

    def compare(self, prompt: str, images: Images) -> Numbers:
        green = images[..., 1].mean(axis=(1, 2)) / 32.0
        return np.tanh(green[:, None] - green[None, :])


class Duel:
    """A judge of single pairs: tanh of the difference of their greenness, divided by a scale."""

    version = "1"
    digest = ""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.asked: list[NDArray[np.int64]] = []

    def compare_pairs(self, prompt: str, images: Images, pairs: NDArray[np.int64]) -> Numbers:
        self.asked.append(pairs)
        green = images[..., 1].mean(axis=(1, 2)) / 32.0
        return np.tanh(green[pairs[:, 0]] - green[pairs[:, 1]]) / self.scale


class Moody(Redness):
    """Redness, except where a prompt's first word says otherwise: slow, nap, raise, nan, hang or die.

    It does so once an image. Where the second word is `once`, it does so only the first time: a file in the
    folder remembers it.
    """

    def __init__(self, folder: str = "") -> None:
        self._folder = folder

    def score(self, prompts: list[str], images: Images) -> Numbers:
        rewards = super().score(prompts, images)
        for row, prompt in enumerate(prompts):
            mood = prompt.split()[0]
            if mood in _MOODS and self._is_due(prompt):
                rewards[row] += _MOODS[mood]()
        return rewards

    def _is_due(self, prompt: str) -> bool:
        if prompt.split()[1] != "once":
            return True
        mark = Path(self._folder) / prompt.replace(" ", "_")
        if mark.exists():
            return False
        mark.touch()
        return True


class Talkative(Redness):
    """Prints the prompts that it is asked about."""

    def score(self, prompts: list[str], images: Images) -> Numbers:
        print("asked about", *prompts)
        return super().score(prompts, images)


class Unbuildable(Redness):
    """Raises when it is built."""

    def __init__(self) -> None:
        raise OSError("no such model on this machine")


class Careless(Redness):
    """Breaks its contract: scores relative to the other images of the call."""

    def score(self, prompts: list[str], images: Images) -> Numbers:
        rewards = super().score(prompts, images)
        return rewards - rewards.mean()


class Threads(Redness):
    """The number of threads that torch may use where it is asked. Loads torch when it is built."""

    def __init__(self) -> None:
        import torch  # here, because the other scorers' processes need none

        self._count = torch.get_num_threads

    def score(self, prompts: list[str], images: Images) -> Numbers:
        return np.full(len(prompts), float(self._count()))


class ProcessId(Redness):
    """The number of its process. Takes 0.2 s for a prompt that begins with slow."""

    def score(self, prompts: list[str], images: Images) -> Numbers:
        time.sleep(0.2 if prompts[0].startswith("slow") else 0.0)
        return np.full(len(prompts), float(os.getpid()))


def _raise() -> float:
    raise RuntimeError("the judge is out")


def _die() -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return 0.0


_MOODS: dict[str, Callable[[], float]] = {
    "slow": lambda: _sleep(0.05),
    "nap": lambda: _sleep(0.25),
    "hang": lambda: _sleep(120.0),
    "raise": _raise,
    "nan": lambda: float("nan"),
    "die": _die,
}
