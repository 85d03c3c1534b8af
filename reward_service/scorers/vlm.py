"""A vision language model as a judge, behind any OpenAI-compatible endpoint: by a rubric, or in pairs."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from common.config.fields import setting
from reward_service.contract.scorer import digest_settings
from reward_service.http.address import check_address
from reward_service.http.token import NO_TOKEN
from reward_service.scorers.chat_client import ChatClient, ChatOptions
from reward_service.scorers.chat_texts import pair_messages, read_better, read_score, rubric_messages
from reward_service.scorers.options import Configured

LOGGER = logging.getLogger("ray.serve")
_WORTH_A_WARNING = 0.5
_ENOUGH_PAIRS = 32
_RUBRIC = (
    "Consider how completely the picture shows what the prompt asks for: every object, number, colour, place "
    "and style; and how well it is made: sharp, coherent, without broken shapes."
)
_CRITERIA = "The better picture shows what the prompt asks for more completely, and is better made."
OptionsT = TypeVar("OptionsT", bound=ChatOptions)


class RubricOptions(ChatOptions):
    """Options of vlm_rubric."""

    rubric: str = setting(_RUBRIC, "", "What the judge is to look at.", min_length=1)
    lowest: float = setting(0.0, "", "The worst score.")
    highest: float = setting(10.0, "", "The best score.")

    @model_validator(mode="after")
    def _a_range(self) -> RubricOptions:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest ({self.lowest:g}) must be below highest ({self.highest:g})")
        return self


class PairsOptions(ChatOptions):
    """Options of vlm_pairs."""

    criteria: str = setting(_CRITERIA, "", "What makes an image better.", min_length=1)


class _Judge(Configured[OptionsT]):
    """What both judges share."""

    version = "1"
    paid = True

    def check(self) -> None:
        """Raises RewardError where base_url is no address. Does not ask the endpoint."""
        # The key is found where the reward runs; whether it may travel is checked there.
        check_address(self.options.base_url, NO_TOKEN, self.options.insecure)

    @property
    def deterministic(self) -> bool:
        """Whether the judge is to answer the same when asked again: at temperature 0, if it is repeatable."""
        return self.options.temperature == 0.0 and self.options.repeatable

    @cached_property
    def _client(self) -> ChatClient:
        return ChatClient(self.options)


class VlmRubric(_Judge[RubricOptions]):
    """The number that a judge gives an image by a rubric, from `lowest` to `highest`, one request an image.

    An answer that is not exactly {"score": n} within the range is a failure of its group, never a number.
    """

    name = "vlm_rubric"
    model = RubricOptions

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the model's name and the options that decide its answers."""
        rubric = {"rubric": self.options.rubric, "range": f"{self.options.lowest}..{self.options.highest}"}
        return digest_settings(self.options.decisive() | rubric)

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), in lowest..highest.

        Raises RewardError where the endpoint fails, is late, or answers anything but a score.
        """
        options = self.options
        answers = self._client.ask_all(
            [
                rubric_messages(options.rubric, options.lowest, options.highest, prompt, image)
                for prompt, image in zip(prompts, images, strict=True)
            ]
        )
        return np.array([read_score(answer, options.lowest, options.highest) for answer in answers])


class VlmPairs(_Judge[PairsOptions]):
    """Which of two images is better, asked in both orders, so that preferring a place cancels out.

    An answer is (said in one order - said in the other) / 2: 1 or -1 where the judge is of one opinion, 0.5
    or -0.5 where it is undecided in one order, 0 where it contradicts itself. Two requests a pair; set
    `pairs` of the reward to ask about fewer pairs than all. How the judge leans to a place is logged.
    """

    name = "vlm_pairs"
    model = PairsOptions

    def __init__(self, **options: str | int | float | bool) -> None:
        super().__init__(**options)
        self._pairs = 0
        self._leans = 0.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the model's name and the options that decide its answers."""
        return digest_settings(self.options.decisive() | {"criteria": self.options.criteria})

    def compare_pairs(
        self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB; pairs: int (P, 2) -> float64 (P,) in {-1, -.5, 0, .5, 1}.

        Raises RewardError where the endpoint fails, is late, or answers anything but which is better.
        """
        both = np.concatenate([pairs, pairs[:, ::-1]])
        answers = self._client.ask_all(
            [pair_messages(self.options.criteria, prompt, images[i], images[j]) for i, j in both]
        )
        said = np.array([read_better(answer) for answer in answers]).reshape(2, len(pairs))
        # +1 where always the first is better, -1 where the second is.
        self._pairs += len(pairs)
        self._leans += float((said[0] + said[1]).sum()) / 2.0
        self._report()
        difference: NDArray[np.float64] = (said[0] - said[1]) / 2.0
        return difference

    def _report(self) -> None:
        lean = self._leans / self._pairs
        loud = self._pairs >= _ENOUGH_PAIRS and abs(lean) >= _WORTH_A_WARNING
        LOGGER.log(
            logging.WARNING if loud else logging.INFO,
            "Judge %s leans %+.2f to the first place over %d pairs (1 = always the first, -1 = the second). "
            "It cancels out, but what a judge says by place alone tells nothing of the images.",
            self.options.model,
            lean,
            self._pairs,
        )
