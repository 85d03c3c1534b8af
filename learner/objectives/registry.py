"""The objectives by `objective.kind`. A new one is its file, its section in the configuration, and its line
here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.config.objectives import LogProbSection, ObjectiveSection
from learner.objectives import Objective
from learner.objectives.ddpo import Ddpo
from learner.objectives.denoising import WeightedDenoising
from learner.objectives.dpok import Dpok
from learner.objectives.extremes import Extremes
from learner.objectives.grpo import Grpo
from learner.objectives.nft import Nft
from learner.objectives.prdp import Prdp
from learner.objectives.raft import Raft
from learner.objectives.rebel import Rebel
from learner.objectives.rwr import Rwr

OBJECTIVES: dict[str, Callable[[Any, int], Objective]] = {
    "prdp": Prdp.build,
    "rebel": Rebel.build,
    "ddpo": Ddpo.build,
    "grpo": Grpo.build,
    "dpok": Dpok.build,
}


DENOISING: dict[str, Callable[[Any, int], WeightedDenoising]] = {
    "rwr": Rwr.build,
    "raft": Raft.build,
    "nft": Nft.build,
}
"""Those without likelihoods."""


def build_objective(section: ObjectiveSection, latent_elements: int) -> Objective | WeightedDenoising:
    """The objective of the configuration. latent_elements: of one image's latent, as the network takes it."""
    if section.kind in DENOISING:
        return DENOISING[section.kind](section, latent_elements)
    objective = OBJECTIVES[section.kind](section, latent_elements)
    if isinstance(section, LogProbSection) and section.extremes:
        return Extremes(objective, section.extremes)
    return objective
