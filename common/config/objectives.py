"""Settings of the objectives, one section each, chosen by `objective.kind`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from common.config.fields import Section, setting

DEFAULT_OBJECTIVE = "prdp"

Widths = Sequence[tuple[int, int]]
"""Of each step that is learned, how many distinct latents it begins at and leads to."""


class UpdatesSection(Section, title="What every objective has."):
    updates_per_epoch: int = setting(1, "updates", "K: gradient steps on each epoch's trajectories.", ge=1)

    def clip_per_element(self, latent_elements: int) -> float:
        """The clip range on the scale of log-probs as means over a latent; math.inf = no clip."""
        return math.inf

    def held_items(self, images: int, widths: Widths) -> float:
        """How many of a prompt's items passes without a graph are made of, see forward_passes."""
        return sum(width for width, _ in widths)

    def learned_items(self, images: int, widths: Widths) -> float:
        """How many of a prompt's items have a coefficient in an update, where its rewards differ."""
        return self.held_items(images, widths)

    def forward_passes(self, update: int, stale: bool) -> int:
        """How many passes without a graph an item takes in an update, see common.passes.learning_passes."""
        return 0

    @property
    def keeps_old_policy(self) -> bool:
        """Whether the policy that samples is a copy that follows the trained one, kept as its average."""
        return False


class LogProbSection(UpdatesSection, title="What objectives on log-probs of denoising steps have."):
    extremes: int = setting(
        0,
        "images",
        "k: learn from the k best and the k worst images of each prompt only: no gradient is taken of the "
        "others, which are sampled and scored; 0 = from all.",
        ge=0,
    )

    def learned_items(self, images: int, widths: Widths) -> float:
        """See UpdatesSection. Of a tree as if the best and the worst images were anywhere in it."""
        return sum(
            width * (1 - self._share_left_out(images, images // width))
            for width, following in widths
            if following > 1 or not self.is_centred
        )

    def _share_left_out(self, images: int, sharing: int) -> float:
        """Chance that none of the `sharing` images of an item is learned from."""
        chosen = 2 * self.extremes
        return math.comb(images - sharing, chosen) / math.comb(images, chosen) if chosen else 0.0

    @property
    def is_centred(self) -> bool:
        """Whether a prompt's coefficients add up to 0 at each step, so that a step which all its images share
        is not learned."""
        return False

    def forward_passes(self, update: int, stale: bool) -> int:
        """See UpdatesSection. An epoch's only update has the actors' log-probs, unless they are of others."""
        return int(self.updates_per_epoch > 1 or stale)


class ClippedSection(LogProbSection, title="What objectives with a clip around the old policy have."):
    clip: bool = setting(True, "", "Clip around the old policy. Cannot act at an epoch's first update.")
    clip_range: float = setting(
        1e-4,
        "nats",
        "eps: clip range of a step's log ratio (prdp: on latent_reduction's scale) or ratio to pi_old.",
        gt=0.0,
    )

    def clip_per_element(self, latent_elements: int) -> float:
        """See UpdatesSection."""
        return self.clip_range if self.clip else math.inf


class PrdpSection(
    ClippedSection,
    title="Proximal Reward Difference Prediction (paper eqs. 10-21), its open points as settings.",
):
    """With clip: false it is RDP, the paper's ablation (eqs. 13 and 14)."""

    kind: Literal["prdp"] = "prdp"
    kl_weight: float = setting(
        3e-5,
        "reward per nat",
        "beta: weight of the KL to the reference, on the reductions chosen below.",
        gt=0.0,
    )
    latent_reduction: Literal["mean", "sum"] = setting("mean", "", "Reduction of log-probs over C H W.")
    step_reduction: Literal["mean", "sum"] = setting(
        "mean", "", "Reduction of log ratios over the stochastic steps (authors' code: mean; equations: sum)."
    )
    pair_weighting: Literal["untied", "all"] = setting(
        "untied", "", "untied = mean over pairs of different rewards (authors' code); all = over all pairs."
    )

    def clip_per_element(self, latent_elements: int) -> float:
        """See UpdatesSection."""
        return super().clip_per_element(1) / (latent_elements if self.latent_reduction == "sum" else 1)

    @property
    def is_centred(self) -> bool:
        """See LogProbSection."""
        return True


class RebelSection(
    LogProbSection,
    title="REBEL (Gao et al. 2024): regression of reward differences on log ratios to the old policy.",
):
    kind: Literal["rebel"] = "rebel"
    kl_weight: float = setting(
        1.0,
        "reward per nat",
        "1 / eta: weight of the KL to the old policy, on the reductions chosen below. With several updates "
        "an epoch at most a prompt's spread of rewards over the nats that these may move a trajectory.",
        gt=0.0,
    )
    latent_reduction: Literal["mean", "sum"] = setting("sum", "", "Reduction of log-probs over C H W.")
    step_reduction: Literal["mean", "sum"] = setting(
        "sum", "", "Reduction of log ratios over the stochastic steps."
    )
    pair_weighting: Literal["untied", "all"] = setting(
        "all", "", "all = mean over all pairs; untied = over pairs of different rewards."
    )

    @property
    def is_centred(self) -> bool:
        """See LogProbSection."""
        return True


class PolicyGradientSection(
    ClippedSection,
    title="What the objectives with advantages and a clipped ratio have in common.",
):
    kl_weight: float = setting(
        0.0,
        "advantage per nat",
        "Weight of each step's KL to the reference, in closed form, mean over C H W. Takes the learner one "
        "more forward pass an image and step; 0 = no such term.",
        ge=0.0,
    )

    def forward_passes(self, update: int, stale: bool) -> int:
        """See UpdatesSection."""
        return super().forward_passes(update, stale) + int(self.kl_weight > 0)

    @property
    def is_centred(self) -> bool:
        """See LogProbSection. At the first update, and unless an advantage is at its limit."""
        return self.centres_group and not self.kl_weight and not self.extremes

    @property
    def centres_group(self) -> bool:
        """Whether a prompt's advantages add up to 0."""
        return False


class LimitedSection(PolicyGradientSection, title="What the objectives with standardised advantages have."):
    advantage_limit: float = setting(5.0, "", "Advantages are held within +- this.", gt=0.0)
    divide_by_std: bool = setting(True, "", "Advantages are divided by a standard deviation of rewards.")


class HistorySection(Section, title="What a prompt's own baseline is taken from."):
    history: int = setting(
        32, "rewards", "Rewards remembered of a prompt (ddpo: with baseline prompt).", ge=2
    )
    history_minimum: int = setting(
        16, "rewards", "Fewest remembered rewards that a prompt's own baseline is taken from.", ge=2
    )
    history_prompts: int = setting(
        10_000, "prompts", "Prompts remembered; those seen longest ago are forgotten.", ge=1
    )

    @model_validator(mode="after")
    def _minimum_within_history(self) -> HistorySection:
        if self.history_minimum > self.history:
            raise ValueError(
                f"history_minimum ({self.history_minimum}) cannot exceed history ({self.history})"
            )
        return self


class DdpoSection(
    HistorySection,
    LimitedSection,
    title="Denoising Diffusion Policy Optimization (Black et al. 2023), importance-sampled.",
):
    kind: Literal["ddpo"] = "ddpo"
    baseline: Literal["batch", "prompt", "group"] = setting(
        "prompt",
        "",
        "Rewards are centred by the mean of: batch = the epoch; prompt = the prompt's own last rewards, the "
        "epoch where it has too few; group = its images of this epoch.",
    )

    @property
    def centres_group(self) -> bool:
        """See PolicyGradientSection."""
        return self.baseline == "group"


class GrpoSection(
    LimitedSection,
    title="Group Relative Policy Optimization (Shao et al. 2024) on denoising steps.",
):
    kind: Literal["grpo"] = "grpo"

    @property
    def centres_group(self) -> bool:
        """See PolicyGradientSection."""
        return True


class DpokSection(
    HistorySection,
    PolicyGradientSection,
    title="DPOK (Fan et al. 2023): rewards less a prompt's value, and each step's KL to the reference.",
):
    kind: Literal["dpok"] = "dpok"
    reward_weight: float = setting(
        10.0,
        "",
        "What rewards less the value are multiplied by (authors: 10 for one prompt, 1000 for many).",
        gt=0.0,
    )
    kl_weight: float = setting(
        0.01,
        "advantage per nat",
        "w_kl: weight of each step's KL to the reference, in closed form, mean over C H W (authors: 0.01 for "
        "one prompt, 0.1 for many). 0 = no such term.",
        ge=0.0,
    )


class DenoisingSection(
    UpdatesSection, title="What objectives on denoising losses have: they need no likelihoods, x_0 alone."
):
    pairs_per_image: int = setting(
        4,
        "noise levels",
        "Noise levels, each with a noise of its own, that an image is learned at in an update; drawn without "
        "replacement.",
        ge=1,
    )
    noise_levels: Literal["sampled", "trained"] = setting(
        "sampled",
        "",
        "Which they are drawn from: sampled = those at which the sampler's steps begin; trained = all of the "
        "model's schedule.",
    )

    def held_items(self, images: int, widths: Widths) -> float:
        """See UpdatesSection."""
        return self.learned_images(images) * self.pairs_per_image

    def learned_images(self, images: int) -> int:
        """How many of a prompt's images have a weight, where no two rewards are equal."""
        return images


class RwrSection(DenoisingSection, title="Reward-weighted regression on the denoising loss."):
    kind: Literal["rwr"] = "rwr"
    weighting: Literal["softmax", "sparse"] = setting(
        "softmax",
        "",
        "Shares of a prompt's images: softmax of rewards over temperature; sparse = equal among the best.",
    )
    temperature: float = setting(
        0.2,
        "reward",
        "Of the softmax, in the reward's units: about its spread within a prompt, or more (DDPO's authors: 5 "
        "for aesthetic scores and kilobytes).",
        gt=0.0,
    )
    kept_share: float = setting(
        0.1, "share", "Of a prompt's images, rounded, at least one: the best (sparse).", gt=0.0, le=1.0
    )

    def learned_images(self, images: int) -> int:
        """See DenoisingSection."""
        return images if self.weighting == "softmax" else max(1, round(self.kept_share * images))


class RaftSection(DenoisingSection, title="Reward-ranked finetuning on each prompt's best image."):
    kind: Literal["raft"] = "raft"

    def learned_images(self, images: int) -> int:
        """See DenoisingSection."""
        return 1


class NftSection(
    DenoisingSection, title="DiffusionNFT (Zheng et al. 2025): forward process, no likelihoods."
):
    kind: Literal["nft"] = "nft"
    beta: float = setting(
        1.0, "", "How far the implicit positive policy goes from the old one to the trained one.", gt=0.0
    )
    advantage_limit: float = setting(
        5.0, "", "Advantages are held within +- this, and optimality is linear in them.", gt=0.0
    )
    normaliser: Literal["batch", "group"] = setting(
        "batch", "", "Standard deviation that advantages are divided by: of the epoch, or of the prompt."
    )
    adaptive: bool = setting(
        True, "", "Divide an item's squared error, taken of x_0, by its mean absolute error."
    )
    reference_weight: float = setting(
        1e-4, "", "Weight of the squared distance to the reference's prediction; 0 saves its pass.", ge=0.0
    )
    old_decay_rate: float = setting(
        0.001,
        "per update",
        "Growth of what stays of the old policy at an epoch's end; 0 = old is replaced.",
        ge=0.0,
    )
    old_decay_limit: float = setting(0.5, "share", "What stays at most.", ge=0.0, lt=1.0)

    def forward_passes(self, update: int, stale: bool) -> int:
        """See UpdatesSection. By the old policy, unless it is the trained one, and by the reference."""
        stays = self.old_decay_rate * self.old_decay_limit > 0
        return int(stays or update > 0) + int(self.reference_weight > 0)

    @property
    def keeps_old_policy(self) -> bool:
        """See UpdatesSection."""
        return True


def _kind_by_default(value: Any) -> Any:
    """An objective without a kind is PRDP, so that configurations need not name it."""
    return {"kind": DEFAULT_OBJECTIVE, **value} if isinstance(value, dict) else value


ObjectiveSection = Annotated[
    PrdpSection
    | RebelSection
    | DdpoSection
    | GrpoSection
    | DpokSection
    | RwrSection
    | RaftSection
    | NftSection,
    Field(discriminator="kind"),
    BeforeValidator(_kind_by_default),
]
