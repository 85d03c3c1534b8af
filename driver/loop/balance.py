"""Estimate, before anything starts, how long actors and learner would wait for each other.

Work is counted in forward passes of the network for one latent (common.passes), because all else cancels:
sizes, guidance and precision are the same for both roles. Decoding, scoring and the weights' way are left
out.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config.schema import Config
from common.config.training import FullPolicy
from common.passes import learning_passes, sampling_passes
from learner.objectives import Needs

FULL_STEP = 3.0
"""Forward and backward pass of all weights, in forward passes: 2.996 counted on Stable Diffusion 1.5, 2.992
on SDXL (python -m benchmarks.scale_shapes)."""
LORA_STEP = 2.12
"""The same of a LoRA adapter of rank 16: 2.147 and 2.098."""
MOST_IDLE = 0.4


@dataclass(frozen=True)
class Balance:
    """Seconds of an epoch in units of one forward pass, of one actor (sampling) and of one rank (learning).

    overlapping: of learning, what can be done while actors sample. actors_idle, learner_idle: estimated
    shares of an epoch in which the role waits for the other.
    """

    sampling: float
    learning: float
    overlapping: float

    @property
    def epoch(self) -> float:
        """One after the other, what cannot overlap."""
        return max(self.sampling, self.overlapping) + self.learning - self.overlapping

    @property
    def actors_idle(self) -> float:
        """Share of the epoch."""
        return 1 - self.sampling / self.epoch

    @property
    def learner_idle(self) -> float:
        """Share of the epoch."""
        return 1 - self.learning / self.epoch


def estimate(config: Config, needs: Needs) -> Balance:
    """The balance of a run's settings, of an epoch that is not the first and of prompts whose rewards differ;
    a process computes what `gpus` GPUs do, or one for a share of it.

    needs: the objective's. Where the schedule chooses the steps that are learned, all are counted.
    The first update's gradient is taken while actors sample, unless the objective needs the whole epoch
    first; later ones wait for all groups. Actors that may run ahead (data.max_staleness) wait for neither.
    """
    sampling, learner = config.sampling, config.learner
    prompts, is_ahead = sampling.prompts_per_epoch, config.data.max_staleness > 0
    step = FULL_STEP if isinstance(config.policy, FullPolicy) else LORA_STEP
    step += 1.0 if learner.gradient_checkpointing else 0.0
    actors, ranks = config.actors.count * max(1, config.actors.gpus), learner.workers * max(1, learner.gpus)
    reference_steps = sampling.learned_steps if needs.reference else ()
    sampled = sampling_passes(sampling.images_per_prompt, sampling.steps, sampling.branch_at, reference_steps)
    updates = [
        learning_passes(config, update, stale=is_ahead).cost(step) * prompts / ranks
        for update in range(config.objective.updates_per_epoch)
    ]
    learned, first = sum(updates), 0.0 if needs.whole_epoch else updates[0]
    return Balance(sampled * prompts / actors, learned, learned if is_ahead else first)


def share_gpus(config: Config) -> bool:
    """Whether actors and ranks take turns on the same GPUs, so that one's waiting is the other's work."""
    return 0 < config.actors.gpus < 1 and config.actors.gpus + config.learner.gpus <= 1


def advice(config: Config, balance: Balance) -> str | None:
    """A warning with the settings to change where a role would be idle for more than MOST_IDLE, else None.

    None too where no other numbers would make the epoch shorter on as many GPUs. Runs without GPUs share a
    machine's cores, and those offline have no actors: they are not judged.
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
    actors = min(range(1, gpus), key=lambda count: max(sampled / count, learned / (gpus - count)))
    mend = f"actors.count={actors} learner.workers={gpus - actors} with a whole GPU each"
    if balance.overlapping == balance.learning and actors == of_actors:
        return None
    if balance.overlapping < balance.learning:
        mend = (
            f"actors.count={gpus} learner.workers={gpus} actors.gpus=0.4 learner.gpus=0.6, so that each GPU "
            "samples, then learns (both models must fit in its memory)"
        )
    return (
        f"{who.capitalize()} would be idle for about {share:.0%} of an epoch, counted in network passes. "
        f"Balanced on the same {gpus} GPUs: {mend}."
    )
