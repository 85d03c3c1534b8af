"""Plain records of the learner."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.trajectory import NoiseKey
from learner.gradient import TrajectoryTensors
from learner.schedule import LearningRate


@dataclass(frozen=True)
class LearnerSettings:
    """Plain numbers.

    rate: AdamW's step size by update. micro_batch: image-steps a pass. max_gradient_norm: L2.
    ema_decay: 0 = off. keep_groups: K > 1. base: digest of the pretrained model, see digest_base.
    """

    run_id: str
    rate: LearningRate
    micro_batch: int
    max_gradient_norm: float
    ema_decay: float
    keep_groups: bool
    base: str


@dataclass(frozen=True)
class LearnerFacts:
    """What a learner is, and what trajectories must fit.

    schedule: fingerprint of the step distribution. latent_shape: (C, H, W).
    is_exact: whether the same groups give the same bits each time. CPUs do; backward passes on GPUs add up in
    an order that changes. base: digest of its pretrained model; process: host:pid. nbytes: of its weights.
    """

    schedule: str
    latent_shape: tuple[int, int, int]
    is_exact: bool
    base: str
    process: str
    nbytes: int


@dataclass(frozen=True)
class KeptGroup:
    """A group that updates 2..K use again. log_prob_old float64 (B, T_s), log_ratio_old float64 (B, T_s)."""

    prompt: str
    noise: NoiseKey
    tensors: TrajectoryTensors
    differences: Tensor
    log_prob_old: Tensor
    log_ratio_old: Tensor
