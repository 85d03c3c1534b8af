"""The data of one PRDP epoch, one frozen class per stage. Read this file and you know the system.

    PromptTask --actor--> TrajectoryGroup, and its images: uint8 (B, height, width, 3), RGB
    images --each reward--> RewardScores, --the sum of rewards--> GroupScore
    TrajectoryGroup + GroupScore = ScoredGroup --learner--> the next PolicyStamp

Letters: B images of one prompt, T denoising steps, T_s <= T of them stochastic (they alone enter the
objective), R distinct latents. A latent has the shape in which the network takes it, often C H W. Arrays are
numpy on the CPU, because they travel through the object store, where numpy arrays are shared without a copy.
No class holds a device, a module or a Ray handle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class PolicyStamp:
    """Which weights: the proof every trajectory carries.

    version: number of optimizer updates since the pretrained policy (0), those before a fork included.
    digest: an integrity proof (hex) of the trained tensors, see common.model.weights.digest_tensors.
    run_id: the run that made them.
    """

    version: int
    digest: str
    run_id: str

    def __str__(self) -> str:
        return f"version {self.version} ({self.digest[:12]}) of run {self.run_id}"


@dataclass(frozen=True)
class NoiseKey:
    """What a group's noise is a function of, together with the image index and the step; and, with its
    number, what an update draws.

    stream separates uses that must never share noise: training, the evaluation of each prompt set, sample.py.
    prompt_index is the position in the run's prompt stream.
    """

    run_seed: int
    stream: str
    epoch: int
    prompt_index: int

    def normal(self, images: int, draws: int, shape: tuple[int, ...]) -> Float32:
        """Standard normal noise of one group, float32 (images, draws, *shape), drawn on the CPU.

        Draw 0 is x_T, draw k >= 1 the noise of the k-th stochastic step. Each image has a generator of its
        own, and the device of the policy has no say, so the bits depend on neither the number of images nor
        the kind of device.
        """
        generators = [self.generator(str(index)) for index in range(images)]
        return np.stack([one.standard_normal((draws, *shape), dtype=np.float32) for one in generators])

    def uniform(self, update: int) -> float:
        """A number in [0, 1) for an update of the learner, by the version of the weights before it."""
        return float(self.generator(f"update {update}").random())

    def generator(self, use: str) -> np.random.Generator:
        """Philox, keyed by 128 bits of SHA-256 over the fields and the use: an image's index, or another.

        (torch's CPU generator keeps 32 bits of its seed: half a million images would meet by the dozen.)
        """
        text = f"{self.run_seed}/{self.stream}/{self.epoch}/{self.prompt_index}/{use}"
        bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
        return np.random.Generator(np.random.Philox(key=bits))


@dataclass(frozen=True)
class PromptTask:
    """One unit of an actor's work: sample B trajectories of one prompt with exactly the stamped weights.

    num_images: B. noise: what their noise is a function of. stamp: of the weights, which come beside it.
    with_reference: also give the log ratios to the reference. False where nobody trains on the trajectories
    (evaluation), or where the objective has no use for them. with_steps: give whole trajectories with their
    log-probs; False: x_0 alone, see TrajectoryGroup.
    branch_at: at each of these step positions every trajectory splits in two, see tree_nodes.
    deterministic: no step draws noise, only x_T is random; so none has a log-prob.
    """

    prompt: str
    num_images: int
    noise: NoiseKey
    stamp: PolicyStamp
    with_reference: bool
    with_steps: bool = True
    branch_at: tuple[int, ...] = ()
    deterministic: bool = False


@dataclass(frozen=True)
class TrajectoryGroup:
    """B whole denoising trajectories of one prompt, sampled by one behaviour policy; or their x_0 alone.

    latents: float32 (R, ...), the distinct latents.
    nodes: int32 (B, T+1), the row of latents that image i has at position k: position 0 is x_T (noise),
        position T is x_0. Trajectories that share a prefix share its rows.
    times: float64 (T,), what the network is told at each step, noisiest first.
    stochastic_steps: int64 (T_s,), positions in 0..T-1 of the steps that enter the objective, increasing.
    log_prob: float64 (B, T_s), log pi_old(x_{t-1} | x_t, c), MEAN over a latent's elements, in nats per
        element. Float64, because float32 resolves 6e-8 of a value near 1, a sixteenth of the paper's clip
        range of 1e-6.
    log_ratio: float32 (B, T_s), log pi_old - log pi_ref, MEAN over a latent's elements, in the difference
        form. None where no reference was asked for.
    condition: what the network is conditioned on, by the name of its argument. Row 0 is the prompt's, row 1,
        where guidance has one, that of the prompt it moves away from.
    steps_fingerprint: of steps and guidance: equal where log-probs can be compared.
    x_0 alone: latents and nodes have one position, nodes (B, 1), and T_s is 0.
    """

    prompt: str
    noise: NoiseKey
    stamp: PolicyStamp
    latents: Float32
    nodes: NDArray[np.int32]
    times: Float64
    stochastic_steps: NDArray[np.int64]
    log_prob: Float64
    log_ratio: Float32 | None
    condition: Mapping[str, NDArray[Any]]
    steps_fingerprint: str

    @property
    def num_images(self) -> int:
        """B."""
        return int(self.nodes.shape[0])

    @property
    def has_steps(self) -> bool:
        """Whether it is whole trajectories, and not x_0 alone."""
        return self.nodes.shape[1] > 1

    @property
    def clean_rows(self) -> NDArray[np.int32]:
        """The row of latents that holds each image's x_0, (B,)."""
        return self.nodes[:, -1]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        of_steps = self.log_prob.nbytes + (0 if self.log_ratio is None else self.log_ratio.nbytes)
        of_condition = sum(array.nbytes for array in self.condition.values())
        return self.latents.nbytes + self.nodes.nbytes + of_steps + of_condition

    def at(self, position: int) -> Float32:
        """The latents of all images at a position of 0..T, (B, ...)."""
        return self.latents[self.nodes[:, position]]


def tree_widths(images: int, steps: int, branch_at: Sequence[int] = ()) -> list[int]:
    """How many distinct latents there are at each position of 0..T.

    At the end there are as many as images, at the start images / 2^len(branch_at): the step of each position
    in branch_at gives every latent two successors, of a position that is there twice four.
    """
    return [images // 2 ** sum(at >= position for at in branch_at) for position in range(steps + 1)]


def tree_nodes(images: int, steps: int, branch_at: Sequence[int] = ()) -> NDArray[np.int32]:
    """nodes of trees, (images, steps + 1), neighbours being related; without branches nothing is shared.

    Rows are numbered position by position, so latents are the positions' one after the other.
    """
    widths = tree_widths(images, steps, branch_at)
    first_rows = np.cumsum([0, *widths[:-1]])
    columns = [
        first + np.arange(images) // (images // width)
        for first, width in zip(first_rows, widths, strict=True)
    ]
    return np.stack(columns, axis=1).astype(np.int32)


@dataclass(frozen=True)
class ScorerStamp:
    """Which reward: name in the configuration, version of its code or settings, SHA-256 (hex) of its weights
    and settings."""

    name: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"version {self.version} ({self.digest[:12]})" if self.digest else f"version {self.version}"


@dataclass(frozen=True)
class RewardScores:
    """One reward's unweighted say about the B images of one prompt, all by one scorer version.

    rewards: float64 (B,), in the scorer's own units; for a judge of pairs the least-squares rewards.
    differences: float64 (B, B), antisymmetric; differences[i, j] = how much better image i is than j.
    residual: root mean square, over the pairs measured, of differences[i, j] - (rewards[i] - rewards[j]);
        0 for a scorer that gives each image a number.
    stamp: which reward, version and weights.
    """

    rewards: Float64
    differences: Float64
    residual: float
    stamp: ScorerStamp


@dataclass(frozen=True)
class GroupScore:
    """Rewards of one prompt's images, all from the scorers named in `scorers` (one version each).

    rewards: float64 (B,), in the scorer's raw units, weighted sum over scorers. For a pairwise judge: the
        least squares rewards, that is the row means of the differences.
    differences: float64 (B, B), antisymmetric; differences[i, j] = how much better image i is than image j.
    parts: unweighted rewards (B,) by reward name.
    """

    rewards: Float64
    differences: Float64
    parts: dict[str, Float64]
    scorers: tuple[ScorerStamp, ...]


@dataclass(frozen=True)
class ScoredGroup:
    """What the learner consumes. advantages: float64 (B,), for an objective that uses them."""

    trajectory: TrajectoryGroup
    score: GroupScore
    advantages: Float64 | None = None
