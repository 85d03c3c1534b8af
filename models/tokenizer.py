"""A word-level CLIP tokenizer over the grammar's words, written as byte-pair merges."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from models.scenes import all_scenes, prompt_of

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 20
_VOCABULARY = 1000  # more than the merges that turn every word of the grammar into one token


def grammar_words() -> list[str]:
    """Every word that a prompt of the grammar can hold, sorted."""
    return sorted({word for scene in all_scenes() for word in prompt_of(scene).split()})


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges after which each of ``words`` is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, end_of_word_suffix="</w>", min_frequency=1, show_progress=False
    )
    bpe.train_from_iterator([" ".join(words)], trainer)
    vocabulary = bpe.get_vocab()
    missing = [word for word in words if word + "</w>" not in vocabulary]
    if missing:
        raise ValueError(f"these words are not one token each: {missing}")
    return [tuple(merge) for merge in _merge_list(bpe)]


def _merge_list(bpe: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]


def make_tokenizer(seed: int) -> CLIPTokenizer:
    """A tokenizer for prompts of the grammar; ``seed`` shuffles the numbers that the tokens get."""
    merges = _merges(grammar_words())
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,-'" for end in ("", "</w>")]
    tokens = list(dict.fromkeys(letters + [left + right for left, right in merges]))
    random.Random(seed).shuffle(tokens)
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=MAX_LENGTH,
        pad_token=END,
        unk_token=END,
        bos_token=START,
        eos_token=END,
    )


def save_tokenizer(seed: int, folder: Path) -> CLIPTokenizer:
    """Write ``make_tokenizer(seed)`` to ``folder`` and return it as read back from there."""
    make_tokenizer(seed).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
