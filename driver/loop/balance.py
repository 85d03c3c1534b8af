"""Estimate, before anything starts, how long actors and learner would wait for each other.

Work is counted in forward passes of the network for one image and step, because all else cancels: sizes,
guidance and precision are the same for both roles. Decoding, scoring and the weights' way are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config.objectives import LogProbSection
from common.config.schema import Config
from common.config.training import FullPolicy

FULL_STEP = 3.0
"""Forward and backward pass of all weights, in forward passes: 2.996 counted on Stable Diffusion 1.5, 2.992
on SDXL (python -m benchmarks.scale_shapes)."""
LORA_STEP = 2.12
"""The same of a LoRA adapter of rank 16: 2.147 and 2.098."""
MOST_IDLE = 0.4


@dataclass(frozen=True)
class Balance:
    """Seconds of an epoch in units of one forward pass, of one actor (sampling) and of one rank (learning).

    first_update: of learning, what can overlap with sampling. actors_idle, learner_idle: estimated shares of
    an epoch in which the role waits for the other.
    """

    sampling: float
    learning: float
    first_update: float
    epoch: float

    @property
    def actors_idle(self) -> float:
        """Share of the epoch."""
        return 1 - self.sampling / self.epoch

    @property
    def learner_idle(self) -> float:
        """Share of the epoch."""
        return 1 - self.learning / self.epoch


def estimate(config: Config, with_reference: bool) -> Balance:
    """The balance of a run's settings; a process computes what `gpus` GPUs do, or one for a share of it.

    with_reference: whether actors also pass the stochastic steps through the reference. Where the schedule
    chooses these steps, all are counted.
    The first update's gradient is taken while actors sample; later ones wait for all groups, unless actors
    may run ahead (data.max_staleness).
    """
    sampling, learner, updates = config.sampling, config.learner, config.objective.updates_per_epoch
    stochastic_steps = sampling.most_learned_steps
    images = sampling.prompts_per_epoch * sampling.images_per_prompt
    per_prompt = sampling.images_per_prompt
    items = sampling.prompts_per_epoch * config.objective.items(per_prompt, per_prompt * stochastic_steps)
    step = FULL_STEP if isinstance(config.policy, FullPolicy) else LORA_STEP
    step += 1.0 if learner.gradient_checkpointing else 0.0
    actors, ranks = config.actors.count * max(1, config.actors.gpus), learner.workers * max(1, learner.gpus)
    sampled = images * (sampling.steps + (stochastic_steps if with_reference else 0)) / actors
    first = items * step / ranks
    # Updates 2..K evaluate the log-probs anew before their gradient, and the first one for the clip's anchor.
    is_evaluated = updates > 1 and isinstance(config.objective, LogProbSection)
    evaluated = items / ranks if is_evaluated else 0.0
    learned = first + evaluated + (updates - 1) * (first + evaluated)
    alone = 0.0 if config.data.max_staleness else learned - first
    return Balance(sampled, learned, first, max(sampled, learned - alone) + alone)


def share_gpus(config: Config) -> bool:
    """Whether actors and ranks take turns on the same GPUs, so that one's waiting is the other's work."""
    return 0 < config.actors.gpus < 1 and config.actors.gpus + config.learner.gpus <= 1


def advice(config: Config, balance: Balance) -> str | None:
    """A warning with the settings to change where a role would be idle for more than MOST_IDLE, else None.

    Runs without GPUs share a machine's cores, and those offline have no actors: they are not judged.
    """
    if not config.actors.gpus or share_gpus(config) or config.data.mode == "offline":
        return None
    idle = {"actors": balance.actors_idle, "the learner": balance.learner_idle}
    who, share = max(idle.items(), key=lambda item: item[1])
    if share <= MOST_IDLE:
        return None
    of_actors = config.actors.count * max(1, config.actors.gpus)
    of_learner = config.learner.workers * max(1, config.learner.gpus)
    gpus = round(of_actors + of_learner)
    sampled, learned = balance.sampling * of_actors, balance.learning * of_learner
    actors = min(max(1, round(gpus * sampled / (sampled + learned))), max(1, gpus - 1))
    mend = f"actors.count={actors} learner.workers={max(1, gpus - actors)} with a whole GPU each"
    if config.objective.updates_per_epoch > 1 and not config.data.max_staleness:
        mend = (
            f"actors.count={gpus} learner.workers={gpus} actors.gpus=0.5 learner.gpus=0.5, so that each GPU "
            "samples, then learns (both models must fit in its memory)"
        )
    return (
        f"{who.capitalize()} would be idle for about {share:.0%} of an epoch, counted in network passes. "
        f"Balanced on the same {gpus} GPUs: {mend}."
    )
