"""Rewards that are spoilt on purpose, by a known amount and the same way each time."""

from __future__ import annotations

import hashlib
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from common.config.fields import setting
from reward_service.scorers.clip import ClipOptions, ClipScorer
from reward_service.scorers.options import Configured


def normal(*content: bytes) -> float:
    """A standard normal number that is a function of the content."""
    digest = hashlib.sha256(b"\0".join(content)).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest[:6], "big") + 0.5) / 2**48)


class DisturbedOptions(ClipOptions):
    """Options of Disturbed."""

    offset: float = setting(
        0.0, "", "Standard deviation over prompts of what a prompt's images all get.", ge=0
    )
    noise: float = setting(0.0, "", "Standard deviation over images of what each image gets.", ge=0)


class Disturbed(ClipScorer):
    """clip with normal offsets by prompt and normal noise by image added. Options: DisturbedOptions."""

    name = "disturbed"
    model = DisturbedOptions

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,)."""
        assert isinstance(self.options, DisturbedOptions)
        offsets = np.array([normal(b"offset", prompt.encode()) for prompt in prompts])
        noise = np.array(
            [
                normal(b"noise", prompt.encode(), image.tobytes())
                for prompt, image in zip(prompts, images, strict=True)
            ]
        )
        return super().score(prompts, images) + self.options.offset * offsets + self.options.noise * noise


class JudgeOptions(ClipOptions):
    """Options of NoisyJudge."""

    temperature: float = setting(..., "", "Difference of two rewards at which the better wins in 73 %.", gt=0)
    difference: float = setting(
        ..., "", "What a judgement counts: the winner's reward less the loser's.", gt=0
    )


class NoisyJudge(Configured[JudgeOptions]):
    """Says which of two images is better: i over j in a share 1 / (1 + exp((r_j - r_i) / temperature)), r
    being what clip says. The draw is a function of prompt and images, so a pair asked the other way round
    is judged the same. Options: JudgeOptions."""

    version = "1"
    name = "noisy_judge"
    model = JudgeOptions

    def check(self) -> None:
        """See Configured."""
        self._clip.check()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the reward that it goes by and the options."""
        return hashlib.sha256(f"{self._clip.digest} {self.options}".encode()).hexdigest()

    def compare_pairs(
        self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB; pairs: int (P, 2) -> float64 (P,), +- difference."""
        rewards = self._clip.score([prompt] * len(images), images)
        firsts, seconds = pairs.T
        chance = expit((rewards[firsts] - rewards[seconds]) / self.options.temperature)
        wins = np.array([self._draw(prompt, images[i], images[j]) for i, j in pairs]) < chance
        return np.where(wins, self.options.difference, -self.options.difference)

    def _draw(self, prompt: str, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
        """Uniform in 0..1; that of the pair turned round is 1 minus it."""
        contents = [first.tobytes(), second.tobytes()]
        turned = contents != sorted(contents)
        draw = NormalDist().cdf(normal(b"judge", prompt.encode(), *sorted(contents)))
        return 1.0 - draw if turned else draw

    @cached_property
    def _clip(self) -> ClipScorer:
        return ClipScorer(path=self.options.path, revision=self.options.revision)
