"""The objectives by `objective.kind`. A new one is its file, its section in the configuration, and its line
here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.config.objectives import ObjectiveSection
from learner.objectives import Objective
from learner.objectives.ddpo import Ddpo
from learner.objectives.grpo import Grpo
from learner.objectives.prdp import Prdp
from learner.objectives.rebel import Rebel

OBJECTIVES: dict[str, Callable[[Any, int], Objective]] = {
    "prdp": Prdp.build,
    "rebel": Rebel.build,
    "ddpo": Ddpo.build,
    "grpo": Grpo.build,
}


def build_objective(section: ObjectiveSection, latent_elements: int) -> Objective:
    """The objective of the configuration. latent_elements: of one image's latent, as the network takes it."""
    return OBJECTIVES[section.kind](section, latent_elements)
