"""Simulated processes for benchmarks.scale: they sleep for a GPU's time and return objects of real size.

A host is one Ray process that stands for many actors, or many learner ranks. Each of them does one thing at
a time, in its own order. The driver talks to a Share of a host as it talks to a process of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from actors.actor import Sample, SampleReport
from actors.slots import Arrival, Place
from common.model.weights import Weights
from common.stopwatch import Stopwatch
from common.trajectory import PolicyStamp, PromptTask, TrajectoryGroup, tree_nodes
from learner.ranks import Scores
from learner.report import LearnerFacts, UpdateOutcome, UpdateReport
from learner.state import Files, Snapshot

RUN_ID = "simulated"
STEPS_FINGERPRINT = "simulated"


@dataclass(frozen=True)
class Sizes:
    """Of one group. images: B; steps: T; latent: side of the latents; pixels: of the pictures.

    weight_bytes: of the published weights.
    """

    images: int
    steps: int
    latent: int
    pixels: int
    weight_bytes: int

    @property
    def group_bytes(self) -> int:
        """Trajectories and pictures of one group."""
        latents = self.images * (self.steps + 1) * 4 * self.latent**2 * 4
        return latents + self.images * 3 * self.pixels**2


class ActorHost:
    """Many actors. seconds: each needs for a group on average; jitter: share of it that a task may differ."""

    def __init__(self, sizes: Sizes, seconds: float, jitter: float) -> None:
        self._sizes = sizes
        self._seconds = seconds
        self._jitter = jitter
        self._turns: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        images, side = sizes.images, sizes.latent
        self._latents = np.zeros((images, sizes.steps + 1, 4, side, side), dtype=np.float32)
        self._pixels = np.zeros((images, sizes.pixels, sizes.pixels, 3), dtype=np.uint8)
        self._pixels[:, 0, 0, 0] = np.arange(images)

    async def ready(self, seat: int) -> Arrival:
        """Where the host runs."""
        place = Place(os.getpid(), ray.get_runtime_context().get_node_id())
        return Arrival(place, base="", encoders_and_vae="")

    async def sample(self, seat: int, task: PromptTask, weights: Weights) -> Sample:
        """Sleep, then answer as actors.pool.ActorProcess does. log_prob holds the moment of the answer."""
        started = Stopwatch.now()
        async with self._turns[seat]:
            # An evaluation is not what is measured.
            seconds = (
                self._seconds * (1.0 + self._jitter * spread(task)) if task.noise.stream == "train" else 0.0
            )
            await asyncio.sleep(seconds)
        images, steps = task.num_images, self._sizes.steps
        latents, pixels = self._latents[:images], self._pixels[:images]
        trajectory = TrajectoryGroup(
            prompt=task.prompt,
            noise=task.noise,
            stamp=task.stamp,
            latents=latents.reshape(-1, *latents.shape[2:]),
            nodes=tree_nodes(images, steps),
            times=np.arange(steps, 0, -1, dtype=np.float64),
            stochastic_steps=np.arange(steps - 1),
            log_prob=np.full((images, steps - 1), time.time()),
            log_ratio=np.zeros((images, steps - 1), dtype=np.float32),
            condition={},
            steps_fingerprint=STEPS_FINGERPRINT,
        )
        report = SampleReport(
            stamp=task.stamp,
            num_images=images,
            process=f"simulated:{seat}",
            busy=started.until_now(),
            nbytes=trajectory.nbytes + int(pixels.nbytes),
        )
        return trajectory, pixels, report


class LearnerHost:
    """Many learner ranks. seconds: a rank needs to take in a group."""

    def __init__(self, sizes: Sizes, seconds: float) -> None:
        self._sizes = sizes
        self._seconds = seconds
        self._turns: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._versions: dict[int, int] = defaultdict(int)
        self._latencies: list[float] = []

    async def ready(self, rank: int) -> LearnerFacts:
        """See learner.ranks.LearnerRank, as for the other methods."""
        shape, nbytes = (4, self._sizes.latent, self._sizes.latent), self._sizes.weight_bytes
        return LearnerFacts(STEPS_FINGERPRINT, shape, True, base="", process="", nbytes=nbytes)

    async def accumulate(self, rank: int, scores: Sequence[Scores], *trajectories: TrajectoryGroup) -> None:
        """Sleep for each group; note how long ago they were sampled."""
        async with self._turns[rank]:
            await asyncio.sleep(self._seconds * len(scores))
        now = time.time()
        self._latencies.extend(now - float(trajectory.log_prob[0, 0]) for trajectory in trajectories)

    async def finish_update(self, rank: int) -> UpdateReport:
        """One update more."""
        started = Stopwatch.now()
        self._versions[rank] += 1
        return UpdateReport(
            version=self._versions[rank],
            outcome=UpdateOutcome.APPLIED,
            bad_groups=(),
            loss=0.0,
            stats={},
            gradient_norm=0.0,
            groups=1,
            log_ratio_mean=0.0,
            log_ratio_shares={},
            latent_elements=4 * self._sizes.latent**2,
            log_ratio_mismatch=0.0,
            step_gradient_norms={},
            process=f"simulated:{rank}",
            busy=(started.until_now(),),
            passes=0,
        )

    async def end_epoch(self, rank: int) -> None:
        """Nothing to forget."""

    async def publish(self, rank: int) -> tuple[PolicyStamp, Weights]:
        """Weights of the real size."""
        stamp = await self.agree(rank)
        return stamp, Weights(stamp, {"all": np.zeros(self._sizes.weight_bytes, dtype=np.uint8)})

    async def agree(self, rank: int) -> PolicyStamp:
        """The stamp alone."""
        version = self._versions[rank]
        return PolicyStamp(version, hashlib.sha256(str(version).encode()).hexdigest(), RUN_ID)

    async def export_snapshot(self, rank: int) -> Snapshot:
        """AdamW's two moments."""
        arrays = {"all": np.zeros(self._sizes.weight_bytes, dtype=np.uint8)}
        moments = {f"all|{number}": array for number in range(2) for array in arrays.values()}
        return Snapshot(self._versions[rank], (), moments, {}, {})

    async def export_state(self, rank: int) -> Files:
        """A checkpoint with nothing in it."""
        return {"learner.json": np.frombuffer(b"{}", dtype=np.uint8)}

    async def take_latencies(self) -> list[float]:
        """Seconds from sampled to accumulated, of each group since the last call."""
        taken, self._latencies = self._latencies, []
        return taken


class Share:
    """One of the many that a host of a kind stands for, as a Ray handle with the kind's public methods.

    Its number goes before every argument.
    """

    def __init__(self, host: Any, kind: type, number: int) -> None:
        for name in vars(kind):
            if not name.startswith("_"):
                setattr(self, name, ShareMethod(getattr(host, name), number))


class ShareMethod:
    """A method of a Share."""

    def __init__(self, method: Any, number: int) -> None:
        self._method = method
        self._number = number

    def options(self, **options: Any) -> ShareMethod:
        """Ray's options of the call."""
        return ShareMethod(self._method.options(**options), self._number)

    def remote(self, *arguments: Any) -> Any:
        """Call it."""
        return self._method.remote(self._number, *arguments)


class SleepingScorer:
    """A reward that needs `seconds` for a batch, whatever its size."""

    version = "1"
    digest = ""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The first byte of each picture."""
        time.sleep(self._seconds)
        return images[:, 0, 0, 0].astype(np.float64)


def spread(task: PromptTask) -> float:
    """-1 to 1, evenly, a function of the task."""
    noise = task.noise
    text = f"{noise.stream} {noise.epoch} {noise.prompt_index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") / 2**31 - 1.0
