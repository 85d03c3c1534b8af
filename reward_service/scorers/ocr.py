"""Is the text that the prompt puts in quotes to be read in the image? Read by RapidOCR on the CPU."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config.fields import Section, setting
from common.errors import RewardError
from reward_service.contract.scorer import digest_files
from reward_service.scorers.options import Configured

_MODELS = ("PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx")
"""The files, inside the rapidocr package, that find lines of text and read them."""

_QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')
_NEEDS = "The scorer ocr needs packages that are not installed: pip install 'prdp-on-ray[ocr]'."


class OcrOptions(Section):
    """Options of ocr."""

    unquoted: Literal["fail", "whole"] = setting(
        "fail",
        "",
        "What a prompt without a text in quotes means: the group fails, or the whole prompt is the text.",
    )
    min_confidence: float = setting(
        0.0, "", "Lines that are read with at most this confidence are not there.", ge=0.0, lt=1.0
    )
    threads: int = setting(1, "threads", "CPU threads of the reader.", ge=1)


class OcrAccuracy(Configured[OcrOptions]):
    """1 - edit distance / length of the text, in 0..1: how well the text that the prompt names can be read.

    The text reward of Flow-GRPO, which reads with another engine (PaddleOCR), so images that are hard to read
    may get other numbers here. The models are inside the rapidocr package; nothing is downloaded.
    """

    version = "1"
    name = "ocr"
    model = OcrOptions

    def check(self) -> None:
        """Raises RewardError where RapidOCR is not installed."""
        if not all(importlib.util.find_spec(package) for package in ("rapidocr", "onnxruntime")):
            raise RewardError(_NEEDS)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the reader's models and the options that decide its numbers."""
        settings = {"unquoted": self.options.unquoted, "min_confidence": self.options.min_confidence}
        return digest_files(_model_files(), settings)

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), in 0..1.

        Raises RewardError for a prompt without a text in quotes, unless `unquoted` is "whole".
        """
        wanted = [wanted_text(prompt, self.options.unquoted) for prompt in prompts]
        return np.array(
            [accuracy(text, self.read(image)) for text, image in zip(wanted, images, strict=True)]
        )

    def read(self, image: NDArray[np.uint8]) -> str:
        """All text in an image, uint8 (height, width, 3) RGB, its lines from top to bottom joined."""
        found = self._reader(np.ascontiguousarray(image[..., ::-1]))
        lines = zip(found.txts or (), found.scores or (), strict=True)
        return "".join(text for text, confidence in lines if confidence > self.options.min_confidence)

    @cached_property
    def _reader(self) -> Any:
        from rapidocr import RapidOCR

        find, read = _model_files()
        engine = "EngineConfig.onnxruntime"
        return RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.use_cls": False,
                "Global.text_score": 0.0,
                "Det.model_path": str(find),
                "Rec.model_path": str(read),
                f"{engine}.intra_op_num_threads": self.options.threads,
                f"{engine}.inter_op_num_threads": 1,
            }
        )


def wanted_text(prompt: str, unquoted: str = "fail") -> str:
    """The first text in double quotes that is not blank. Raises RewardError where there is none."""
    for match in _QUOTED.finditer(prompt):
        text = match[1] or match[2] or ""
        if text.strip():
            return text
    return _WITHOUT_QUOTES[unquoted](prompt)


def accuracy(wanted: str, found: str) -> float:
    """1 - edit distance / length, in 0..1; spaces and case do not count, nor what surrounds the text."""
    wanted, found = _plain(wanted), _plain(found)
    if wanted in found:
        return 1.0
    return 1.0 - min(edit_distance(wanted, found), len(wanted)) / len(wanted)


def edit_distance(first: str, second: str) -> int:
    """How many letters must be put in, taken out or exchanged to turn one text into the other."""
    row = list(range(len(second) + 1))
    for done, letter in enumerate(first, start=1):
        above, row = row, [done]
        for column, other in enumerate(second, start=1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (letter != other)))
    return row[-1]


def _whole(prompt: str) -> str:
    if not prompt.strip():
        raise RewardError("The prompt is blank, so there is no text to look for in the image.")
    return prompt


def _refuse(prompt: str) -> str:
    raise RewardError(
        f'The prompt {prompt!r} names no text in double quotes, as in: a sign that says "OPEN". Mend the '
        "prompt, or set the option unquoted to whole, to look for the whole prompt."
    )


_WITHOUT_QUOTES: dict[str, Callable[[str], str]] = {"fail": _refuse, "whole": _whole}


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def _model_files() -> tuple[Path, Path]:
    package = importlib.util.find_spec("rapidocr")
    if package is None or package.origin is None:
        raise RewardError(_NEEDS)
    folder = Path(package.origin).parent / "models"
    missing = [name for name in _MODELS if not (folder / name).is_file()]
    if missing:
        raise RewardError(
            f"{folder} lacks {missing}: install a version of rapidocr that pyproject.toml allows."
        )
    return folder / _MODELS[0], folder / _MODELS[1]
