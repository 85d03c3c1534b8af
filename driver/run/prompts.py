"""Prompts: sets of them, a stream that a seed shuffles, and the tasks of an epoch or an evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.config.schema import Config
from common.config.training import PromptSource
from common.errors import PromptSetError
from common.places import HUB_ID, near_paths
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.run.prompt_files import READERS, download_files, known_formats, read_prompts

# Uses of a seed that must not share an order.
_STREAM, _SAMPLE = 0, 1
# The noise of an evaluation does not depend on the epoch, so that images before and after differ by the
# policy alone.
EVALUATION_EPOCH = 0

TRAINING_STREAM = "train"
"""The stream of noise that training draws from; evaluations have others."""

PromptSets = dict[str, list[tuple[int, str]]]
"""Indices and prompts by the name of the set."""


class PromptSet(Sequence[str]):
    """Prompts in the order of their file, held in Arrow memory.

    digest: SHA-256 (hex) of the prompts, the same whatever format they were read from.
    origin: where they are from, for errors.
    """

    def __init__(self, texts: pa.ChunkedArray, digest: str, origin: str) -> None:
        self._texts = texts
        self.digest = digest
        self.origin = origin

    @classmethod
    def of(cls, blocks: Iterable[pa.StringArray], origin: str) -> PromptSet:
        """Hold blocks of prompts. Raises PromptSetError where there is no prompt in them."""
        chunks = [block for block in blocks if len(block)]
        if not chunks:
            raise PromptSetError(f"{origin} holds no prompts")
        pa.default_memory_pool().release_unused()
        return cls(pa.chunked_array(chunks, pa.string()), _digest(chunks), origin)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices: they would copy
        """The prompt at a position from 0 to len - 1. Raises IndexError beyond."""
        if not 0 <= index < len(self._texts):
            raise IndexError(f"{self.origin} has prompts 0 to {len(self._texts) - 1}, asked for {index}")
        return str(self._texts[index].as_py())


class PromptStream:
    """The endless stream that training draws from: every pass holds each prompt once, in an order of its own.

    A function of (prompts, seed, position) alone, so a position is all that a checkpoint needs.
    """

    def __init__(self, prompts: PromptSet, seed: int) -> None:
        self._prompts = prompts
        self._seed = seed
        self._orders: dict[int, NDArray[np.int64]] = {}

    def at(self, index: int) -> str:
        """The prompt at stream position index >= 0."""
        if index < 0:
            raise IndexError(f"stream positions begin at 0, asked for {index}")
        number, place = divmod(index, len(self._prompts))
        return self._prompts[int(self._order(number)[place])]

    def take(self, cursor: int, count: int) -> list[tuple[int, str]]:
        """(position, prompt) at the count positions from cursor on."""
        return [(index, self.at(index)) for index in range(cursor, cursor + count)]

    def _order(self, number: int) -> NDArray[np.int64]:
        """Of one pass. Two are kept, because an epoch may reach from one pass into the next."""
        if number not in self._orders:
            while len(self._orders) >= 2:
                del self._orders[next(iter(self._orders))]
            self._orders[number] = shuffled(len(self._prompts), self._seed, (_STREAM, number))
        return self._orders[number]


def open_prompts(source: PromptSource) -> PromptSet:
    """Open a prompt file, or a data set of the hub.

    Raises PromptSetError for a source that is missing, of an unknown format, malformed, without prompts, or
    without the column; with the line or row, and the nearest names.
    """
    path = Path(source.path)
    if path.is_file():
        return PromptSet.of(read_prompts(path, source.column), str(path))
    if path.is_dir():
        raise PromptSetError(f"{path} is a folder; name a file in it{_near_files(path / 'prompts')}")
    if HUB_ID.fullmatch(source.path) and path.suffix.lower() not in READERS and not path.parent.is_dir():
        files = download_files(source.path, source.revision)
        blocks = (block for file in files for block in read_prompts(file, source.column))
        return PromptSet.of(blocks, f"data set {source.path}")
    if not path.parent.is_dir():
        raise PromptSetError(f"There is no prompt file {path}: the folder {path.parent} does not exist")
    raise PromptSetError(f"There is no prompt file {path}{_near_files(path)}")


def sample_prompts(prompts: PromptSet, count: int, seed: int) -> list[tuple[int, str]]:
    """count different prompts, drawn by seed, as (position in the set, prompt).

    Raises PromptSetError where the set has fewer.
    """
    if count > len(prompts):
        raise PromptSetError(
            f"{prompts.origin} has {len(prompts)} prompts, {count} different ones are asked for; "
            "lower evaluation.prompts or give a larger prompt set"
        )
    chosen = shuffled(len(prompts), seed, (_SAMPLE,))[:count]
    return [(int(index), prompts[int(index)]) for index in chosen]


def training_tasks(
    config: Config,
    stream: PromptStream,
    epoch: int,
    stamp: PolicyStamp,
    with_reference: bool,
    with_steps: bool = True,
) -> list[PromptTask]:
    """The N tasks of one epoch, B images each: the next N of the prompt stream."""
    count = config.sampling.prompts_per_epoch
    prompts = stream.take(epoch * count, count)
    return [
        PromptTask(
            prompt=prompt,
            num_images=config.sampling.images_per_prompt,
            noise=NoiseKey(config.run.seed, TRAINING_STREAM, epoch, index),
            stamp=stamp,
            with_reference=with_reference,
            with_steps=with_steps,
            branch_at=config.sampling.branch_at,
        )
        for index, prompt in prompts
    ]


def choose_prompts(config: Config, stream: PromptStream, unseen: PromptSet) -> PromptSets:
    """seen: the first prompts that training draws; unseen: drawn without replacement from the other set."""
    count = config.evaluation.prompts
    return {"seen": stream.take(0, count), "unseen": sample_prompts(unseen, count, config.evaluation.seed)}


def evaluation_tasks(
    config: Config, name: str, prompts: Sequence[tuple[int, str]], stamp: PolicyStamp
) -> list[PromptTask]:
    """The tasks of one prompt set's evaluation."""
    section = config.evaluation
    return [
        PromptTask(
            prompt=prompt,
            num_images=section.images_per_prompt,
            noise=NoiseKey(section.seed, f"evaluation of {name} prompts", EVALUATION_EPOCH, index),
            stamp=stamp,
            with_reference=False,
            deterministic=section.deterministic,
        )
        for index, prompt in prompts
    ]


def shuffled(count: int, seed: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """0 .. count - 1 in an order that depends on seed and key alone, not on numpy's version.

    (numpy keeps the raw bits of its generators the same for ever, but not what Generator.permutation makes.)
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64)


def _digest(chunks: Iterable[pa.StringArray]) -> str:
    lengths, letters = hashlib.sha256(), hashlib.sha256()
    for chunk in chunks:
        sizes = pc.binary_length(chunk).to_numpy(zero_copy_only=False).astype("<i4")
        offsets = np.frombuffer(chunk.buffers()[1], dtype=np.int32)
        first, last = offsets[chunk.offset], offsets[chunk.offset + len(chunk)]
        lengths.update(sizes.tobytes())
        letters.update(memoryview(chunk.buffers()[2])[int(first) : int(last)])
    return hashlib.sha256(lengths.digest() + letters.digest()).hexdigest()


def _near_files(path: Path) -> str:
    near = near_paths(path, lambda item: item.suffix.lower() in READERS)
    if not near:
        return f"; no prompt file in {path.parent} has a name like it ({known_formats()})"
    return f"; did you mean {' or '.join(near)}?"
