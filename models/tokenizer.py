"""A word-level CLIP tokenizer over the grammar's words, written as byte-pair merges."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from models.older_files import write_vocabulary
from models.scenes import all_scenes, prompt_of

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 20


def grammar_words() -> list[str]:
    """Every word that a prompt of the grammar can hold, sorted."""
    return sorted({word for scene in all_scenes() for word in prompt_of(scene).split()})


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges after which each of ``words`` is one token: the commonest pair first, ties by name."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in split):
        counts = Counter(pair for symbols in split for pair in pairwise(symbols))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [_merged(symbols, best) for symbols in split]
    return merges


def make_tokenizer(seed: int) -> CLIPTokenizer:
    """A tokenizer for prompts of the grammar; ``seed`` shuffles the numbers that the tokens get."""
    merges = _merges(grammar_words())
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,-'" for end in ("", "</w>")]
    tokens = list(dict.fromkeys(letters + [left + right for left, right in merges]))
    random.Random(seed).shuffle(tokens)
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # pairs are what the tokenizers library takes
        model_max_length=MAX_LENGTH,
        pad_token=END,
        unk_token=END,
        bos_token=START,
        eos_token=END,
    )


def save_tokenizer(seed: int, folder: Path) -> CLIPTokenizer:
    """Write ``make_tokenizer(seed)`` to ``folder`` and return it as read back from there."""
    make_tokenizer(seed).save_pretrained(folder)
    write_vocabulary(folder)
    return CLIPTokenizer.from_pretrained(folder)
