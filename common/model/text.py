"""Prompts to conditions: text encoders with their tokenizers, CLIP and T5, and whether the two fit."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from common.config.training import TextPlace
from common.errors import ModelError
from common.model.folder import SENTENCEPIECE
from common.model.guidance import Condition
from common.model.options import T5, T5_NAMES, TEXT, TEXT_NAMES, Allowed
from common.model.weights import digest_tensors

EMBEDDED_PROMPTS = 256
FEWEST_TOKENS = 3
"""Beginning, end, and one of the prompt."""
ARGMAX_END = 2
"""With this eos_token_id a CLIP text encoder pools at the token of the largest number."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextKind:
    """A kind of text encoder with its tokenizer.

    tokenizers: class names that model_index.json may give, all loaded as `tokenizer`. files: sets of files,
    of any of which a tokenizer can be made. algorithm: of tokenizer.json. names: options that are honoured;
    allowed: those that have to be neutral. check: raises ModelError where tokenizer (with its folder, for the
    message) and encoder (its configuration) do not fit. tokens: that a prompt is cut or filled up to; None =
    as many as tokenizer and encoder allow.
    """

    encoder: type[Any]
    tokenizers: tuple[str, ...]
    tokenizer: type[Any]
    files: tuple[tuple[str, ...], ...]
    algorithm: str
    names: frozenset[str]
    allowed: Allowed
    check: Callable[[str, Any, Any], None]
    tokens: int | None


def clip(encoder: type[Any], pools: bool = False) -> TextKind:
    """A CLIP text encoder of that class. pools: whether its pooled vector is used."""
    return TextKind(
        encoder=encoder,
        tokenizers=("CLIPTokenizer", "CLIPTokenizerFast"),
        tokenizer=CLIPTokenizer,
        files=(("tokenizer.json",), ("vocab.json", "merges.txt")),
        algorithm="BPE",
        names=TEXT_NAMES,
        allowed=TEXT,
        check=partial(check_clip, pools=pools),
        tokens=None,
    )


def t5(tokens: int) -> TextKind:
    """The encoder of a T5."""
    return TextKind(
        encoder=T5EncoderModel,
        tokenizers=("T5Tokenizer", "T5TokenizerFast"),
        tokenizer=T5TokenizerFast,
        files=(("tokenizer.json",), (SENTENCEPIECE,)),
        algorithm="Unigram",
        names=T5_NAMES,
        allowed=T5,
        check=check_vocabulary,
        tokens=tokens,
    )


def prompt_tokens(tokenizer: Any, encoder: Any) -> int:
    """How many tokens a prompt has: the smaller of what the tokenizer cuts at and what the encoder reads.

    encoder: its configuration. A tokenizer without a length of its own cuts at nothing.
    """
    return min(int(tokenizer.model_max_length), encoder.max_position_embeddings)


def check_clip(where: str, tokenizer: Any, encoder: Any, pools: bool) -> None:
    """Raise ModelError where a tokenizer and a text encoder do not fit each other.

    where: the tokenizer's folder. encoder: its configuration. pools: whether its pooled vector is used.
    """
    check_vocabulary(where, tokenizer, encoder)
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    unset = [f"{name}_token" for name, number in special.items() if number is None]
    if unset:
        raise ModelError(f"{where} sets no {' and no '.join(unset)}.")
    if prompt_tokens(tokenizer, encoder) < FEWEST_TOKENS:
        raise ModelError(
            f"{where}: model_max_length is {tokenizer.model_max_length}, the text encoder's "
            f"max_position_embeddings {encoder.max_position_embeddings}; a prompt takes {FEWEST_TOKENS} "
            "tokens at least."
        )
    end, last = encoder.eos_token_id, max(tokenizer.get_vocab().values())
    if pools and special["eos"] != (last if end == ARGMAX_END else end):
        raise ModelError(
            f"{where}: a prompt ends with token {special['eos']}, but the text encoder, with eos_token_id "
            f"{end}, pools at token {last if end == ARGMAX_END else end}. Set eos_token_id in the text "
            f"encoder's config.json to {special['eos']}."
        )


def check_vocabulary(where: str, tokenizer: Any, encoder: Any) -> None:
    """Raise ModelError where a tokenizer gives tokens that the text encoder has no embedding of."""
    vocabulary, size = tokenizer.get_vocab().items(), encoder.get_text_config().vocab_size
    beyond = sorted(token for token, number in vocabulary if number >= size)
    if beyond:
        raise ModelError(
            f"{where}: the tokens {beyond[:3]}, {len(beyond)} in all, have no embedding: the text encoder's "
            f"vocab_size is {size}. Take the tokenizer that it was trained with, or save it "
            "with its embeddings resized."
        )


class PaddedText:
    """A text encoder, read when it is first looked at, with its tokenizer, for prompts of one length. Counts
    those that do not fit, and says it once.

    read: gives the encoder, on its device. tokens: that a prompt is cut or filled up to.
    """

    def __init__(self, tokenizer: Any, read: Callable[[], Any], tokens: int) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.cut_prompts = 0
        self._read = read
        self._encoder: Any = None
        self._dropped: str | None = None

    @property
    def encoder(self) -> Any:
        """Read where it is not there. Raises ModelError, also where its weights are not those that were
        dropped."""
        if self._encoder is None:
            encoder = self._read()
            if self._dropped is not None and digest_tensors(encoder.state_dict()) != self._dropped:
                raise ModelError(
                    f"The {type(encoder).__name__} that model.text_encoder: drop has read again has other "
                    "weights than before: its files have changed. Put back those that the run began with."
                )
            self._encoder = encoder
        return self._encoder

    def drop(self) -> None:
        """Let go of the encoder, but for the digest of its weights."""
        if self._encoder is not None and self._dropped is None:
            self._dropped = digest_tensors(self._encoder.state_dict())
        self._encoder = None

    def __call__(self, prompt: str, device: torch.device) -> Any:
        """The encoder's output for one prompt, hidden states included."""
        ids, mask = self.tokenize(prompt, device)
        # Some CLIP encoders say that they were trained with a mask; others, and T5 here, read none.
        masked = getattr(self.encoder.config, "use_attention_mask", False)
        return self.encoder(
            ids, attention_mask=mask if masked else None, output_hidden_states=True, return_dict=True
        )

    def tokenize(self, prompt: str, device: torch.device, around: int = 0) -> tuple[Tensor, Tensor]:
        """Ids and their mask (1 = the prompt's, 0 = what fills it up), both int64 (1, tokens + around).

        around: tokens of what the prompt is set in.
        """
        limit = self.tokens + around
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        length = len(self.tokenizer(prompt).input_ids)
        if length > limit:
            if not self.cut_prompts:
                log.warning(
                    "A prompt has %d tokens; the text encoder reads the first %d: %r", length, limit, prompt
                )
            self.cut_prompts += 1
        return tokens.input_ids.to(device), tokens.attention_mask.to(device)


BETWEEN: Mapping[TextPlace, Callable[[PaddedText], object]] = {
    "keep": lambda text: text.encoder,
    "offload": lambda text: text.encoder.to("cpu"),
    "drop": PaddedText.drop,
}
"""What is done with a text encoder that nothing is embedded by."""


@dataclass
class TextStage:
    """A family's text encoders: conditions by prompt, remembered, on the device.

    between: where the encoders are meanwhile. encode: one prompt -> one row, while they are on the device.
    """

    encoders: Mapping[str, PaddedText]
    device: torch.device
    between: TextPlace
    encode: Callable[[str], Condition]
    _known: OrderedDict[str, Condition] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._put_away()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """See Family.embed."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if missing:
            for text in self.encoders.values():
                text.encoder.to(self.device)
            for prompt in missing:
                rows = self.encode(prompt)
                self._known[prompt] = {name: _at_least_float32(value) for name, value in rows.items()}
            self._put_away()
        found = [self._known[prompt] for prompt in prompts]
        for prompt in prompts:
            self._known.move_to_end(prompt)
        while len(self._known) > EMBEDDED_PROMPTS:
            self._known.popitem(last=False)
        return {name: torch.cat([rows[name] for rows in found]) for name in found[0]}

    def _put_away(self) -> None:
        for text in self.encoders.values():
            BETWEEN[self.between](text)


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
