"""The data of one PRDP epoch, one frozen class per stage. Read this file and you know the system.

    PromptTask --actor--> SampledGroup = TrajectoryGroup + ImageGroup
    ImageGroup --reward service--> GroupScore
    TrajectoryGroup + GroupScore = ScoredGroup --learner--> the next PolicyStamp

Letters: B images of one prompt, T denoising steps, T_s <= T of them stochastic (they alone enter the
objective),
C H W channels, height and width of the latents. Arrays are numpy on the CPU, because they travel through the
object
store, where numpy arrays are shared without a copy. No class holds a device, a module or a Ray handle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class PolicyStamp:
    """Which weights: the proof every trajectory carries.

    version: number of optimizer updates since the pretrained policy (0), those before a fork included.
    digest: SHA-256 (hex) of the trainable weights, see common.model.weights.digest_tensors.
    run_id: the run that made them.
    """

    version: int
    digest: str
    run_id: str

    def __str__(self) -> str:
        return f"version {self.version} ({self.digest[:12]}) of run {self.run_id}"


@dataclass(frozen=True)
class NoiseKey:
    """What a group's noise is a function of, together with the image index and the step (common.model.noise).

    stream separates uses that must never share noise: "train" or "evaluation".
    prompt_index is the position in the run's prompt stream.
    """

    run_seed: int
    stream: str
    epoch: int
    prompt_index: int


@dataclass(frozen=True)
class PromptTask:
    """One unit of an actor's work: sample B trajectories of one prompt with exactly the stamped weights.

    with_reference: also compute the behaviour-to-reference log ratios. False where nobody trains on the
    trajectories
    (evaluation), or where the policy is the reference and every log ratio is 0 by identity (version 0).
    """

    prompt: str
    images: int
    noise: NoiseKey
    stamp: PolicyStamp
    with_reference: bool


@dataclass(frozen=True)
class TrajectoryGroup:
    """B whole denoising trajectories of one prompt, sampled by one behaviour policy.

    latents: float32 (B, T+1, C, H, W); latents[:, 0] is x_T (noise), latents[:, T] is x_0.
    timesteps: int64 (T,), the scheduler's timesteps, decreasing.
    stochastic_steps: int64 (T_s,), positions in 0..T-1 of the steps that enter the objective, increasing.
    log_prob: float64 (B, T_s), log pi_old(x_{t-1} | x_t, c), MEAN over C H W, in nats per latent element.
    Float64,
        because float32 resolves 6e-8 of a value near 1, a sixteenth of the paper's clip range of 1e-6.
    log_ratio: float32 (B, T_s), log pi_old - log pi_ref, MEAN over C H W. Computed in the difference form.
    schedule: fingerprint of the step distribution (common.model.steps.StepDistribution.fingerprint).
    """

    prompt: str
    noise: NoiseKey
    stamp: PolicyStamp
    latents: Float32
    timesteps: NDArray[np.int64]
    stochastic_steps: NDArray[np.int64]
    log_prob: Float64
    log_ratio: Float32
    schedule: str

    @property
    def num_images(self) -> int:
        """B."""
        return int(self.latents.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.latents.nbytes + self.log_prob.nbytes + self.log_ratio.nbytes)


@dataclass(frozen=True)
class ImageGroup:
    """The decoded pictures of one TrajectoryGroup. pixels: uint8 (B, height, width, 3), RGB."""

    prompt: str
    noise: NoiseKey
    stamp: PolicyStamp
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class ScorerStamp:
    """Which reward: name in the configuration, version of its code or settings, SHA-256 (hex) of its weights
    and settings."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class GroupScore:
    """Rewards of one prompt's images, all from the scorers named in `scorers` (one version each).

    rewards: float64 (B,), in the scorer's own raw units, weighted sum over scorers. For a pairwise judge: the
    least
        squares rewards, that is the row means of the differences.
    differences: float64 (B, B), antisymmetric; differences[i, j] = how much better image i is than image j.
    parts: unweighted rewards (B,) by reward name.
    """

    rewards: Float64
    differences: Float64
    parts: dict[str, Float64]
    scorers: tuple[ScorerStamp, ...]

    @staticmethod
    def pointwise(
        rewards: Float64, parts: dict[str, Float64], scorers: tuple[ScorerStamp, ...]
    ) -> GroupScore:
        """The score of a scorer that gives one number an image: differences r_i - r_j."""
        rewards = np.asarray(rewards, dtype=np.float64)
        return GroupScore(rewards, rewards[:, None] - rewards[None, :], parts, scorers)


@dataclass(frozen=True)
class ScoredGroup:
    """What the learner consumes."""

    trajectory: TrajectoryGroup
    score: GroupScore
