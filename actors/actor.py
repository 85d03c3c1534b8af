"""The actor: a plain class that samples with exactly the weights its task names.

consumes: PromptTask and the Weights it names. produces: TrajectoryGroup, images, SampleReport.
waits for: nothing. unblocked by: a task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.sampler import count_passes, sample_group
from common.cluster.process_name import process_name
from common.errors import WeightsError
from common.model.policy import Policy
from common.model.probe import Probe
from common.model.steps import Steps
from common.model.trainable import Reference
from common.model.weights import Weights, digest_tensors
from common.stopwatch import Busy, Stopwatch
from common.trajectory import PolicyStamp, PromptTask, TrajectoryGroup


@dataclass(frozen=True)
class SampleReport:
    """What the driver learns of a finished task.

    process: of the actor, host:pid. busy: its work; nbytes: bytes of trajectories and images. passes: of one
    latent through the network, forward, the reference's too; 0 where nothing was sampled. is_finite: whether
    all latents are; the images of others are black.
    """

    stamp: PolicyStamp
    num_images: int
    process: str
    busy: Busy
    nbytes: int
    passes: int = 0
    is_finite: bool = True

    @property
    def busy_s(self) -> float:
        """Seconds of work."""
        return self.busy.seconds


Sample = tuple[TrajectoryGroup, NDArray[np.uint8], SampleReport]


class Actor:
    """Samples trajectories.

    Holds one version of the weights at a time; a task of another version loads it first.
    """

    def __init__(self, policy: Policy, reference: Reference, steps: Steps, probe: Probe) -> None:
        self._policy = policy
        self._reference = reference
        self._steps = steps
        self._probe = probe
        self._loaded: PolicyStamp | None = None
        # Of the weights that the probe saw last.
        self._probed = digest_tensors(policy.trainable.parameters())

    @staticmethod
    def of(policy: Policy, steps: Steps) -> Actor:
        """An actor of a policy just loaded, which is its own reference as long as nothing trains it."""
        return Actor(policy, policy.reference(), steps, Probe.of(policy, steps))

    def sample(self, task: PromptTask, weights: Weights) -> Sample:
        """Do one task. Images are uint8 (B, height, width, 3). Raises WeightsError, see `load`."""
        started = Stopwatch.now()
        self.load(weights, task.stamp)
        trajectory, images = sample_group(task, self._policy, self._reference, self._steps)
        report = SampleReport(
            stamp=task.stamp,
            num_images=task.num_images,
            process=process_name(),
            busy=started.until_now(),
            nbytes=trajectory.nbytes + int(images.nbytes),
            passes=count_passes(task, trajectory) * self._policy.guided.guidance.rows,
            is_finite=bool(np.isfinite(trajectory.latents).all()),
        )
        return trajectory, images, report

    def load(self, weights: Weights, stamp: PolicyStamp) -> None:
        """Make the policy hold the stamped weights, unless it does.

        Raises WeightsError where the weights, once loaded, are not the stamped ones, or where the policy
        predicts with them what it predicted with others.
        """
        if stamp == self._loaded:
            return
        self._loaded = None
        tensors = weights.tensors(stamp)
        self._policy.load(tensors)
        digest = digest_tensors(self._policy.trainable.parameters())
        if digest != stamp.digest:
            sent = digest_tensors(tensors)
            if sent != stamp.digest:
                raise WeightsError(
                    f"The weights object of {stamp} has been altered: its tensors' digest is {sent[:12]}."
                )
            raise WeightsError(f"After loading {stamp} the policy's weights have digest {digest[:12]}.")
        if digest != self._probed:
            change = f"An actor loaded {stamp} in place of weights of digest {self._probed[:12]}"
            self._probe.check_influence(self._policy, change)
            self._probed = digest
        self._loaded = stamp
