"""Picture files of this machine, to be scored as one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import RewardError
from reward_service.cli.target import Target
from reward_service.contract.results import RewardScores


@dataclass(frozen=True)
class PictureFiles:
    """Pictures by file, each uint8 (height, width, 3) RGB."""

    paths: tuple[Path, ...]
    pixels: tuple[NDArray[np.uint8], ...]

    def score(self, target: Target, prompt: str) -> RewardScores:
        """Score them as one group; of different sizes only where each has a number of its own.

        Raises RewardError where a judge of pairs is given different sizes, or there is no score.
        """
        sizes = {picture.shape for picture in self.pixels}
        if len(sizes) == 1:
            return target.score(prompt, np.stack(self.pixels))
        if target.kind() != "pointwise":
            shown = ", ".join(
                f"{path} {p.shape[1]}x{p.shape[0]}" for path, p in zip(*self._both, strict=True)
            )
            raise RewardError(f"Pictures that are compared must have one size; given: {shown}.")
        parts = [target.score(prompt, picture[None]) for picture in self.pixels]
        rewards = np.concatenate([part.rewards for part in parts])
        return RewardScores(rewards, rewards[:, None] - rewards[None, :], 0.0, parts[0].stamp)

    @property
    def _both(self) -> tuple[tuple[Path, ...], tuple[NDArray[np.uint8], ...]]:
        return self.paths, self.pixels


def read_pictures(paths: Sequence[Path]) -> PictureFiles:
    """Read files of any format that Pillow knows. Raises RewardError naming one that is no picture."""
    return PictureFiles(tuple(paths), tuple(_read(path) for path in paths))


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except FileNotFoundError as error:
        raise RewardError(f"There is no file {path}.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RewardError(f"{path} cannot be read as a picture: {error}") from error
