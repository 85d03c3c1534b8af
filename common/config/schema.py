"""The whole configuration: one frozen tree, validated before anything is loaded or started."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import field_validator, model_validator

from common.config.fields import Section, setting
from common.config.objectives import DenoisingSection, LogProbSection, ObjectiveSection, PrdpSection
from common.config.safety import CheckpointSection, GuardsSection
from common.config.services import (
    ActorsSection,
    AppReward,
    DisplaySection,
    EvaluationSection,
    LearnerSection,
    RaySection,
    RewardEntry,
    RewardServiceSection,
    RewardSpec,
    RunSection,
    TrackerSection,
)
from common.config.training import (
    DataSection,
    LoraPolicy,
    ModelSection,
    OptimizerSection,
    PolicySection,
    PromptsSection,
    SamplingSection,
)

SHARED_GPU = 0.5
"""The largest share of a GPU of which Ray may give two processes the same one."""


class Config(Section):
    """One PRDP run."""

    model: ModelSection
    prompts: PromptsSection
    rewards: dict[str, RewardEntry] = setting(..., "", "Rewards trained on, by name: their weighted sum.")
    gold: dict[str, RewardEntry] = setting({}, "", "Rewards that only evaluate.")
    policy: PolicySection = setting(LoraPolicy(), "", "What is trained: kind lora or full.")
    run: RunSection = RunSection()
    sampling: SamplingSection = SamplingSection()
    objective: ObjectiveSection = setting(PrdpSection(), "", "What is minimised, by kind.")
    optimizer: OptimizerSection = OptimizerSection()
    data: DataSection = DataSection()
    actors: ActorsSection = ActorsSection()
    learner: LearnerSection = LearnerSection()
    reward_service: RewardServiceSection = RewardServiceSection()
    evaluation: EvaluationSection = EvaluationSection()
    ray: RaySection = RaySection()
    tracker: TrackerSection = TrackerSection()
    checkpoint: CheckpointSection = CheckpointSection()
    guards: GuardsSection = GuardsSection()
    display: DisplaySection = DisplaySection()

    @field_validator("rewards")
    @classmethod
    def _something_to_train_on(cls, value: dict[str, RewardEntry]) -> dict[str, RewardEntry]:
        if not value:
            raise ValueError("name at least one reward, e.g. {clip: {scorer: clip, options: {path: FOLDER}}}")
        if not any(entry.weight for entry in value.values()):
            raise ValueError("every reward has weight 0, so there is nothing to train on")
        return value

    @field_validator("rewards", "gold")
    @classmethod
    def _metric_names(cls, value: dict[str, RewardEntry]) -> dict[str, RewardEntry]:
        bad = [name for name in value if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", name)]
        if bad:
            raise ValueError(f"{bad} cannot be names of metrics; use up to 60 letters, digits, '_' and '-'")
        if "reward" in value:
            raise ValueError("'reward' is the name of the weighted sum; give this one another name")
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> Config:
        both = sorted(set(self.rewards) & set(self.gold))
        if both:
            raise ValueError(f"{both} named in both rewards and gold; give them different names")
        return self

    @model_validator(mode="after")
    def _a_gpu_for_each_rank(self) -> Config:
        gpus = self.learner.gpus
        if self.learner.workers > 1 and 0 < gpus <= SHARED_GPU and self.model.device != "cpu":
            raise ValueError(
                f"learner.gpus is {gpus:g} with {self.learner.workers} learner.workers: Ray may put two "
                f"ranks on one GPU, and NCCL refuses that; give more than {SHARED_GPU:g}, e.g. "
                "learner.gpus=0.6 actors.gpus=0.4 to share each GPU with an actor"
            )
        return self

    @model_validator(mode="after")
    def _applications_have_a_cluster(self) -> Config:
        every = {**self.rewards, **self.gold}
        named = [name for name, entry in every.items() if isinstance(entry, AppReward)]
        if named and self.ray.address == "local":
            raise ValueError(
                f"{' and '.join(named)}: an application that runs already is asked for (app), but with "
                "ray.address: local the run starts a cluster of its own, without one; set ray.address=auto"
            )
        return self

    @model_validator(mode="after")
    def _pairs_connect_all_images(self) -> Config:
        for name, entry in self.embedded.items():
            _check_pairs(name, entry.pairs, "evaluation", self.evaluation.images_per_prompt)
            if name in self.rewards and self.data.mode == "online":
                _check_pairs(name, entry.pairs, "sampling", self.sampling.images_per_prompt)
        return self

    @model_validator(mode="after")
    def _some_images_are_left_out(self) -> Config:
        images = self.sampling.images_per_prompt
        extremes = self.objective.extremes if isinstance(self.objective, LogProbSection) else 0
        if 2 * extremes > images:
            raise ValueError(
                f"objective.extremes {extremes} takes {2 * extremes} images of a prompt, but "
                f"sampling.images_per_prompt is {images}; give at most {images // 2}, or 0 to learn from all"
            )
        return self

    @model_validator(mode="after")
    def _enough_noise_levels(self) -> Config:
        section, steps = self.objective, self.sampling.steps
        if not isinstance(section, DenoisingSection) or section.noise_levels == "trained":
            return self
        if section.pairs_per_image > steps:
            raise ValueError(
                f"objective.pairs_per_image is {section.pairs_per_image}, but sampling.steps begin at only "
                f"{steps} noise levels; give at most {steps}, or objective.noise_levels=trained"
            )
        return self

    @model_validator(mode="after")
    def _terms_of_log_probs(self) -> Config:
        if not isinstance(self.objective, LogProbSection) and self.optimizer.term_share < 1:
            raise ValueError(
                f"optimizer.term_share draws from a gradient of log-probs, and objective.kind "
                f"{self.objective.kind} has none; set it to 1, and objective.pairs_per_image smaller"
            )
        return self

    @model_validator(mode="after")
    def _one_average(self) -> Config:
        if self.objective.keeps_old_policy and self.optimizer.ema_decay:
            raise ValueError(
                f"objective.kind {self.objective.kind} keeps the policy that samples as the average of the "
                "weights, so there is no other; set optimizer.ema_decay=0"
            )
        return self

    @property
    def keeps_averages(self) -> bool:
        """Whether the learner keeps an average of the weights: a moving one, or the policy that samples."""
        return bool(self.optimizer.ema_decay) or self.objective.keeps_old_policy

    @property
    def embedded(self) -> dict[str, RewardSpec]:
        """The rewards, trained and gold, that the run starts an application for."""
        every = {**self.rewards, **self.gold}
        return {name: entry for name, entry in every.items() if isinstance(entry, RewardSpec)}

    @property
    def run_folder(self) -> Path:
        """Where the run writes."""
        return Path(self.run.folder) / self.run.name

    @property
    def trajectories_per_epoch(self) -> int:
        """N x B."""
        return self.sampling.prompts_per_epoch * self.sampling.images_per_prompt


def _check_pairs(name: str, pairs: int, section: str, images: int) -> None:
    """section: which sets the number of images of a group. Raises ValueError for too few pairs; 0 = all."""
    if 0 < pairs < images - 1:
        raise ValueError(
            f"reward {name} has pairs: {pairs}, which cannot connect {images} images "
            f"({section}.images_per_prompt); give at least {images - 1}, or 0 for all "
            f"{images * (images - 1) // 2}"
        )
