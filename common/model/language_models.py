"""Language models as text encoders: Gemma 2, Qwen 2.5 VL, Qwen 3. Their kinds, and prompts as messages."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import Gemma2Model, GemmaTokenizer, Qwen2Tokenizer

from common.errors import ModelError
from common.model.options import GENERATION
from common.model.text import PaddedText, TextKind, check_vocabulary

_FORMER = frozenset(
    {
        "attention_bias",
        "cache_implementation",
        "head_dim",
        "hidden_act",
        "layer_types",
        "max_window_layers",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "use_cache",
        "use_sliding_window",
        "vision_token_id",
    }
)
"""Options that their classes honour, under the names of earlier versions of transformers too."""


def gemma2(tokens: int) -> TextKind:
    """Gemma 2 without its head."""
    tokenizers = ("GemmaTokenizer", "GemmaTokenizerFast")
    return _kind(Gemma2Model, tokenizers, GemmaTokenizer, (("tokenizer.json",),), tokens, False)


def qwen(encoder: type[Any], tokens: int, chats: bool) -> TextKind:
    """A Qwen of that class. chats: whether prompts are set in the tokenizer's chat template."""
    tokenizers = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
    files = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    return _kind(encoder, tokenizers, Qwen2Tokenizer, files, tokens, chats)


def as_message(tokenizer: Any, prompt: str, thinking: bool) -> str:
    """A prompt as a user's message, up to where the answer would begin."""
    message = [{"role": "user", "content": prompt}]
    return str(
        tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
    )


def hidden_states(
    text: PaddedText, prompt: str, device: torch.device, around: int = 0
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Every layer's states, (1, tokens + around, width) each, and the mask, int64 (1, tokens + around).

    around: tokens of what the prompt is set in.
    """
    ids, mask = text.tokenize(prompt, device, around)
    states = text.encoder(
        input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False, return_dict=True
    ).hidden_states
    return states, mask


def _kind(
    encoder: type[Any],
    tokenizers: tuple[str, ...],
    tokenizer: type[Any],
    files: tuple[tuple[str, ...], ...],
    tokens: int,
    chats: bool,
) -> TextKind:
    config = encoder.config_class()
    return TextKind(
        encoder=encoder,
        tokenizers=tokenizers,
        tokenizer=tokenizer,
        files=files,
        algorithm="BPE",
        names=frozenset(config.to_dict())
        | frozenset(config.get_text_config().to_dict())
        | GENERATION
        | _FORMER,
        allowed={"model_type": (config.model_type,), "torchscript": (False, None)},
        check=partial(_check, chats=chats),
        tokens=tokens,
    )


def _check(where: str, tokenizer: Any, encoder: Any, chats: bool) -> None:
    check_vocabulary(where, tokenizer, encoder)
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{where} sets no pad_token.")
    if chats and not tokenizer.chat_template:
        raise ModelError(f"{where} has no chat_template, which this family sets prompts in.")
