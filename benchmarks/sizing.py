"""How many actors, learner ranks and rewards a cluster needs, as arithmetic.

FLOP and parameters are counted (benchmarks.scale_shapes). What a GPU makes of them, the network and the
reward's time are assumptions, named in ASSUMED. benchmarks.sizing_tables prints what follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.scale_shapes import SD15_COST, SDXL_COST, ShapeCost

FLOAT_BYTES = 4
ADAM_FLOATS = 4
"""Numbers a trained weight takes on the learner: itself, its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class Gpu:
    """peak: dense bfloat16 FLOP/s, from its data sheet."""

    name: str
    peak: float


@dataclass(frozen=True)
class Assumed:
    """What was not measured. used: share of a GPU's peak that sampling and learning reach.

    reward_s: a picture takes one reward replica; replicas_a_gpu: of that reward. link: bytes a second that
    Ray moves between two nodes; ring: that NCCL does. digest: bytes a second of SHA-256 on one core.
    """

    used: float
    reward_s: float
    replicas_a_gpu: int
    link: float
    ring: float
    digest: float
    gpus_a_node: int


@dataclass(frozen=True)
class Setting:
    """What is sampled. images: B; steps: T; learned: T_s; passes: UNet passes a step, 2 with guidance."""

    images: int
    steps: int
    learned: int
    passes: int


A100 = Gpu("A100", 312e12)
H100 = Gpu("H100", 989e12)
ASSUMED = Assumed(
    used=0.35, reward_s=0.01, replicas_a_gpu=4, link=2e9, ring=10e9, digest=1.5e9, gpus_a_node=8
)
PAPER = Setting(images=8, steps=50, learned=49, passes=2)
PAPER_PROMPTS = 64
MODELS: dict[str, ShapeCost] = {"SD 1.5": SD15_COST, "SDXL": SDXL_COST}
CLUSTERS = (8, 64, 512)
DRIVER_S = 4.8e-3
"""The driver's CPU seconds for a group: measured with 1,000 simulated actors, see docs/scaling.md."""
GROUPS_AN_ACTOR = 4
"""An epoch's groups for each actor, so that the wait at its end is a small share."""


def trajectory_bytes(model: ShapeCost, setting: Setting) -> int:
    """float32 latents of B trajectories; log-probs are less than a thousandth of it."""
    return setting.images * (setting.steps + 1) * 4 * model.latent**2 * FLOAT_BYTES


def picture_bytes(model: ShapeCost, setting: Setting) -> int:
    """uint8 pictures of B trajectories."""
    return setting.images * 3 * model.pixels**2


def group_bytes(model: ShapeCost, setting: Setting) -> int:
    """Of the objects that a task makes."""
    return trajectory_bytes(model, setting) + picture_bytes(model, setting)


def weight_bytes(model: ShapeCost, full: bool) -> int:
    """Of published weights: float32, all or the adapter's."""
    return FLOAT_BYTES * (model.parameters if full else model.lora_parameters)


def learner_bytes(model: ShapeCost, full: bool) -> int:
    """On a rank's GPU before activations."""
    trained = model.parameters if full else model.lora_parameters
    frozen = 0 if full else model.parameters
    return FLOAT_BYTES * (ADAM_FLOATS * trained + frozen)


def actor_bytes(model: ShapeCost, full: bool) -> int:
    """On an actor's GPU before activations: the policy, and the frozen reference where all is trained."""
    return FLOAT_BYTES * (2 * model.parameters if full else model.parameters + model.lora_parameters)


def sampling_seconds(model: ShapeCost, setting: Setting, gpu: Gpu) -> float:
    """An actor's for a group: policy, reference on the learned steps, and the autoencoder."""
    passes = setting.passes * (setting.steps + setting.learned)
    return setting.images * (passes * model.forward + model.decode) / (gpu.peak * ASSUMED.used)


def learning_seconds(model: ShapeCost, setting: Setting, gpu: Gpu, full: bool) -> float:
    """A rank's for a group, K = 1, without recomputed activations."""
    step = model.full_step if full else model.lora_step
    return setting.images * setting.passes * setting.learned * step / (gpu.peak * ASSUMED.used)


@dataclass(frozen=True)
class Cluster:
    """A cluster divided among the roles. replicas: of the reward."""

    model: ShapeCost
    setting: Setting
    gpu: Gpu
    full: bool
    gpus: int
    actors: int
    ranks: int
    replicas: int

    @staticmethod
    def divide(model: ShapeCost, setting: Setting, gpu: Gpu, full: bool, gpus: int) -> Cluster:
        """So that actors and ranks are busy alike. Reward replicas that fill no GPU share the ranks'."""
        sample, learn = sampling_seconds(model, setting, gpu), learning_seconds(model, setting, gpu, full)
        most = gpus / (sample + learn)
        replicas = max(1, math.ceil(most * setting.images * ASSUMED.reward_s / 0.7))
        left = gpus - replicas // ASSUMED.replicas_a_gpu
        actors = min(left - 1, max(1, round(left * sample / (sample + learn))))
        return Cluster(model, setting, gpu, full, gpus, actors, left - actors, replicas)

    @property
    def sample_s(self) -> float:
        """An actor's for a group."""
        return sampling_seconds(self.model, self.setting, self.gpu)

    @property
    def learn_s(self) -> float:
        """A rank's for a group."""
        return learning_seconds(self.model, self.setting, self.gpu, self.full)

    @property
    def groups(self) -> int:
        """N: groups an epoch, so that each actor has some in turn; at least the paper's."""
        return max(PAPER_PROMPTS, GROUPS_AN_ACTOR * self.actors)

    @property
    def nodes(self) -> int:
        """Machines."""
        return -(-self.gpus // ASSUMED.gpus_a_node)

    @property
    def exchange_s(self) -> float:
        """From the last gradient to the first new sample: sum over ranks, pack, spread, load, with digests.

        The sum is a ring's; the spread doubles the number of nodes that have the weights in each step.
        """
        size = weight_bytes(self.model, self.full)
        ring = 0.0 if self.ranks == 1 or self.nodes == 1 else 2.0 * size / ASSUMED.ring
        spread = math.ceil(math.log2(self.nodes)) * size / ASSUMED.link
        return ring + spread + 3 * size / ASSUMED.digest

    def epoch_s(self, groups: int) -> float:
        """Of N groups, without staleness: actors sample in waves, rank after rank takes in the next group in
        prompt order, and the new weights go round."""
        free = [0.0] * self.ranks
        for position in range(groups):
            sampled = (position // self.actors + 1) * self.sample_s
            rank = position % self.ranks
            free[rank] = max(free[rank], sampled) + self.learn_s
        return max(free) + self.exchange_s

    @property
    def groups_per_s(self) -> float:
        """Over a whole epoch."""
        return self.groups / self.epoch_s(self.groups)

    @property
    def store_bytes(self) -> float:
        """In a node's object store at the end of an epoch, whose groups are kept until its updates are
        through: its actors' groups, as many trajectories of its ranks, and the weights."""
        size = self.setting
        kept = group_bytes(self.model, size) + trajectory_bytes(self.model, size)
        return self.groups / self.nodes * kept + weight_bytes(self.model, self.full)

    @property
    def network_bytes(self) -> float:
        """A second, in and out of a node, while it samples and learns."""
        size = self.setting
        moved = group_bytes(self.model, size) + trajectory_bytes(self.model, size)
        return self.groups_per_s / self.nodes * moved
