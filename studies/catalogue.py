"""The studies: which cells each has. A cell is base.yaml with changes, and a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.load import load_config
from common.config.schema import Config

BASE = Path("studies/base.yaml")

Changes = dict[str, Any]
"""Settings by dotted key."""


@dataclass(frozen=True)
class Study:
    """A question and the cells that answer it. seeds: run in this order, all cells with one before any with
    the next. grids: keep a picture grid of each cell's end, of the first seed. on_ray: run the cells by the
    whole trainer. curves: the cells of each figure by its name; None is one figure of all of them."""

    name: str
    question: str
    cells: Mapping[str, Changes]
    seeds: Sequence[int] = (0, 1, 2)
    grids: bool = False
    on_ray: frozenset[str] = frozenset()
    curves: Mapping[str, Sequence[str]] | None = None

    def config(self, cell: str, seed: int) -> Config:
        """A cell's configuration. Raises ConfigError."""
        settings = {**self.cells[cell], "run.name": f"{self.name}_{cell}_{seed}", "run.seed": seed}
        return load_config(BASE, [f"{key}={json.dumps(value)}" for key, value in settings.items()])

    @property
    def figures(self) -> Mapping[str, Sequence[str]]:
        """The cells of each figure by its name."""
        return {self.name: [*self.cells]} if self.curves is None else self.curves

    def digest(self, cell: str) -> str:
        """Of what decides a cell's results but for the seed and the code: base.yaml and the changes."""
        content = BASE.read_text() + json.dumps(self.cells[cell], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


FIVE = (0, 1, 2, 3, 4)
LARGE: Changes = {
    "prompts.train": "runs/studies/prompts/large.parquet",
    "prompts.unseen": "runs/studies/prompts/large_unseen.parquet",
}
DIFFERENT_PROMPTS: Changes = {
    "sampling.prompts_per_epoch": 64,
    "sampling.images_per_prompt": 2,
}
"""Nearly what the paper gave DDPO: as many different prompts as a group allows, at least two images each."""

KL_OF_DDPO = {"kl_0.003": 0.003, "kl_0.03": 0.03}
"""Weights of a KL for DDPO. In its units PRDP's beta of 1 is, in expectation and for groups of B = 2 images,
(B - 1) / (B T_s s n) = .003: T_s = 3 steps, s = .034 the deviation of rewards from their pair's mean, n =
1,536 elements of a latent."""

METHODS: dict[str, Changes] = {
    "prdp": {},
    "ddpo_batch": {"objective": {"kind": "ddpo", "baseline": "batch"}, **DIFFERENT_PROMPTS},
    "ddpo_prompt": {"objective": {"kind": "ddpo", "baseline": "prompt"}},
    "ddpo_group": {"objective": {"kind": "ddpo", "baseline": "group"}},
    "grpo": {"objective": {"kind": "grpo"}},
    "rebel": {"objective": {"kind": "rebel"}},
    "dpok": {"objective": {"kind": "dpok", "reward_weight": 1000.0, "kl_weight": 0.1}},
    # About the spread of the proxy among the small prompts' images before training, which is .11.
    "rwr": {"objective": {"kind": "rwr", "temperature": 0.1}},
    "raft": {"objective": {"kind": "raft"}},
    "nft": {"objective": {"kind": "nft"}},
}
EIGHT_STEPS: Changes = {
    "sampling.steps": 8,
    "sampling.prompts_per_epoch": 8,
    "sampling.images_per_prompt": 16,
    "learner.micro_batch_size": 56,
}
TREES: Changes = {"sampling.branch_at": [1, 3, 5]}
TERMS_40: Changes = {"optimizer.term_share": 0.4}
TERMS_60: Changes = {"optimizer.term_share": 0.6}
PROMPTS_4: Changes = {"sampling.prompts_per_epoch": 4}
IMAGES_8: Changes = {"sampling.images_per_prompt": 8}
WINDOW: Changes = {"sampling.window": {"kind": "fixed", "size": 3}}
TWICE: Changes = {
    "objective": {"kl_weight": 1.0, "updates_per_epoch": 2},
    "optimizer.decay_updates": 32,
}


def half(changes: Changes, updates_per_epoch: int = 1) -> Changes:
    """Half of the epochs of `plain`, and so of its queries, with a step size that falls over them."""
    return {
        "run.epochs": 8,
        "evaluation.every_epochs": 2,
        "objective.updates_per_epoch": updates_per_epoch,
        "optimizer.decay_updates": 8 * updates_per_epoch,
        **changes,
    }


def at_rate(rate: float, changes: Changes) -> Changes:
    """The same with another learning rate."""
    return {"optimizer.learning_rate": rate, **changes}


WAYS: dict[str, Changes] = {
    "plain": {},
    "tree": TREES,
    "terms_40": TERMS_40,
    "flat": {"sampling.sampler": {"kind": "ddim", "flat": True}},
    "pairs_4": {"objective": {"kl_weight": 1.0, "extremes": 4}},
    "pairs_4_k4": {
        "objective": {"kl_weight": 1.0, "extremes": 4, "updates_per_epoch": 4},
        "optimizer.decay_updates": 64,
    },
    "tree_terms_60": TREES | TERMS_60,
    "terms_40_k2": TWICE | TERMS_40,
    "tree_terms_60_k2": TWICE | TREES | TERMS_60,
    # What a larger step size does, no more: the sweep's rates lie a factor of 2.5 and 4 apart.
    "rate_1e-04": at_rate(1e-4, {}),
    "rate_2e-04": at_rate(2e-4, {}),
    "rate_4e-04": at_rate(4e-4, {}),
    "half_1e-04": at_rate(1e-4, half({})),
    "half_2e-04": at_rate(2e-4, half({})),
    "half_4e-04": at_rate(4e-4, half({})),
    "half_terms_40_1e-04": at_rate(1e-4, half(TERMS_40)),
    "half_terms_40_2e-04": at_rate(2e-4, half(TERMS_40)),
    "half_terms_40_k2_1e-04": at_rate(1e-4, half(TERMS_40, 2)),
    "half_terms_40_k2_2e-04": at_rate(2e-4, half(TERMS_40, 2)),
    "half_tree_terms_60_k2_1e-04": at_rate(1e-4, half(TREES | TERMS_60, 2)),
    "half_tree_terms_60_k4_2e-04": at_rate(2e-4, half(TREES | TERMS_60, 4)),
    # Half of the queries an epoch, and as many updates.
    "prompts_4_2e-04": at_rate(2e-4, PROMPTS_4),
    "prompts_4_terms_40_2e-04": at_rate(2e-4, PROMPTS_4 | TERMS_40),
    "images_8_2e-04": at_rate(2e-4, IMAGES_8),
    "images_8_terms_40_2e-04": at_rate(2e-4, IMAGES_8 | TERMS_40),
}
"""Ways to do with less, of eight steps and 16 images a prompt."""
WINDOWS: dict[str, Changes] = {
    "plain": {},
    "window_3": WINDOW,
    "half": half({}),
    "half_terms_40": half(TERMS_40),
    "half_window_3": half(WINDOW),
    "half_window_3_k2": half(WINDOW, 2),
}
"""Evaluated without noise, because windows leave noise out."""
HALF_WORK: dict[str, Changes] = {
    "plain": {},
    "terms_40": TERMS_40,
    "half": half({}),
    "half_terms_40": half(TERMS_40),
}
SWEEP = (2e-5, 5e-5, 2e-4)
LOWEST = 5e-6
FALLING = ("rwr", "raft")
"""Objectives that lose at the lowest rate of SWEEP, and so are tried at a lower one."""
RATES: dict[str, float] = {
    **dict.fromkeys(METHODS, 5e-5),
    **dict.fromkeys(FALLING, LOWEST),
    "ddpo_batch": 2e-4,
}
"""Of each objective, the best of the sweep on unseen prompts, see docs/study.md. RWR and RAFT lose at all of
them, the less the lower."""


def with_rate(method: str) -> Changes:
    """A method at the learning rate that the sweep chose for it."""
    return {**METHODS[method], "optimizer.learning_rate": RATES[method]}


def flow(epochs: int, **sampling: Any) -> Changes:
    """PRDP on the embedded flow model, as the quickstart trains it, for so many epochs. Evaluated without
    noise, because samplers differ in theirs."""
    return {
        "model.path": "models/tiny-sd3",
        "model.prompt_tokens": 1,
        "run.epochs": epochs,
        "optimizer.decay_updates": epochs,
        "sampling.prompts_per_epoch": 8,
        "sampling.images_per_prompt": 16,
        "sampling.steps": 6,
        "sampling.stochastic_steps": "auto",
        "learner.micro_batch_size": 48,
        "evaluation.deterministic": True,
        "evaluation.every_epochs": -(-epochs // 2),
        **{f"sampling.{name}": value for name, value in sampling.items()},
    }


FLOW_WORK: dict[str, Changes] = {
    "plain": flow(16),
    "window": flow(27, window={"kind": "fixed", "size": 3}),
    "half_window": flow(8, window={"kind": "fixed", "size": 3}),
    "half_precise": flow(8, sampler={"kind": "precise"}),
    # Half of the queries an epoch, and as many updates as `plain`.
    "prompts_4_window": flow(16, prompts_per_epoch=4, window={"kind": "fixed", "size": 3}),
    "images_8_window": flow(16, images_per_prompt=8, window={"kind": "fixed", "size": 3}),
}


def proxy(scorer: str, **options: Any) -> Changes:
    """Trained on another reward that is made of the proxy, which then only evaluates, as gold does."""
    clips = {
        name: {"scorer": "clip", "options": {"path": f"models/tiny-clip-{name}"}}
        for name in ("proxy", "gold")
    }
    path = {"path": "models/tiny-clip-proxy"}
    return {"rewards": {"trained": {"scorer": scorer, "options": {**path, **options}}}, "gold": clips}


def disturbed(offset: float, noise: float) -> Changes:
    """See studies.scorers.Disturbed."""
    return proxy("studies.scorers:Disturbed", offset=offset, noise=noise)


STUDIES = {
    study.name: study
    for study in (
        Study(
            "sweep",
            "Which learning rate suits each objective? (small prompts, a seed that no other study has)",
            {
                f"{method}_{rate:g}": {**changes, "optimizer.learning_rate": rate}
                for method, changes in METHODS.items()
                for rate in (*((LOWEST,) if method in FALLING else ()), *SWEEP)
            }
            # Regression on all samples alike: what RWR and RAFT do where rewards say nothing.
            | {
                f"rwr_uniform_{LOWEST:g}": {
                    "objective": {"kind": "rwr", "temperature": 1000.0},
                    "optimizer.learning_rate": LOWEST,
                }
            },
            seeds=(100,),
            curves={},
        ),
        Study(
            "large",
            "Many prompts, each seen once: who learns, who generalises, who is stable?",
            {
                **{method: {**LARGE, **with_rate(method)} for method in METHODS},
                # At the rate of the others too: its own is the best on small prompts, and four times theirs.
                "ddpo_batch_5e-05": {
                    **LARGE,
                    **METHODS["ddpo_batch"],
                    "optimizer.learning_rate": 5e-5,
                },
                # The same for the others: what comes of many prompts of two images each, and of that rate.
                **{
                    f"{method}_{name}": {**LARGE, **with_rate(method), **changes}
                    for method in ("prdp", "ddpo_group")
                    for name, changes in (
                        ("64x2", DIFFERENT_PROMPTS),
                        ("2e-04", at_rate(RATES["ddpo_batch"], {})),
                        ("64x2_2e-04", at_rate(RATES["ddpo_batch"], DIFFERENT_PROMPTS)),
                    )
                },
                # Is it PRDP's KL or its regression that holds at that rate?
                **{
                    f"ddpo_group_64x2_2e-04_{name}": at_rate(
                        RATES["ddpo_batch"],
                        {
                            **LARGE,
                            **DIFFERENT_PROMPTS,
                            "objective": {**METHODS["ddpo_group"]["objective"], "kl_weight": weight},
                        },
                    )
                    for name, weight in KL_OF_DDPO.items()
                },
                "prdp_64x2_2e-04_kl_10": at_rate(
                    RATES["ddpo_batch"], {**LARGE, **DIFFERENT_PROMPTS, "objective.kl_weight": 10.0}
                ),
            },
            FIVE,
            curves={
                "large": [*METHODS],
                "large_baselines": [
                    *("prdp", "prdp_64x2", "prdp_64x2_2e-04"),
                    *("ddpo_group", "ddpo_group_64x2", "ddpo_group_64x2_2e-04"),
                    *("ddpo_batch_5e-05", "ddpo_batch"),
                ],
                "large_kl": [
                    *("prdp_64x2_2e-04", "prdp_64x2_2e-04_kl_10", "ddpo_group_64x2_2e-04"),
                    *(f"ddpo_group_64x2_2e-04_{name}" for name in KL_OF_DDPO),
                ],
            },
        ),
        Study(
            "small",
            "45 prompts, seen again and again: the same question.",
            {
                **{method: with_rate(method) for method in METHODS},
                # AdamW's first steps are the sign of the first gradients.
                "prdp_warmup": {**with_rate("prdp"), "optimizer.warmup_updates": 4},
                # What `kl` found to be better than the rate that the sweep chose.
                "prdp_2e-04_kl_10": at_rate(2e-4, {"objective.kl_weight": 10.0}),
                "prdp_2e-04_kl_10_half": at_rate(2e-4, half({"objective.kl_weight": 10.0})),
            },
            FIVE,
        ),
        Study(
            "noiseless",
            "Many prompts, evaluated without the sampler's noise: what is left of the gain?",
            {
                method: {**LARGE, **with_rate(method), "evaluation.deterministic": True}
                for method in ("prdp", "ddpo_group", "nft")
            },
        ),
        Study(
            "ways",
            "What does each way of doing with less gain, and for which passes?",
            {name: {**with_rate("prdp"), **EIGHT_STEPS, **changes} for name, changes in WAYS.items()},
            seeds=(0,),
            curves={},
        ),
        Study(
            "work",
            "Who ends where plain PRDP ends with half of its queries, and half of its passes or less?",
            # At the best of the rates that `ways` tried.
            {name: at_rate(2e-4, {**EIGHT_STEPS, **changes}) for name, changes in HALF_WORK.items()},
            FIVE,
        ),
        Study(
            "windows",
            "Does it pay to learn from the noisiest steps of DDIM alone?",
            {
                name: at_rate(2e-4, {**EIGHT_STEPS, "evaluation.deterministic": True, **changes})
                for name, changes in WINDOWS.items()
            },
            seeds=(0,),
        ),
        Study(
            "clip",
            "Can the clip act at one update an epoch, and does it matter beyond?",
            {
                f"k{count}_{'clip' if clip else 'no_clip'}": {
                    **with_rate("prdp"),
                    **half({}, count),
                    "objective.clip": clip,
                }
                for count in (1, 4, 10)
                for clip in (True, False)
            },
        ),
        Study(
            "offline",
            "Samples of the policy that learns against as many of the pretrained one, with equal updates.",
            {
                "online": with_rate("prdp"),
                "offline": {
                    **with_rate("prdp"),
                    "data": {"mode": "offline", "folder": "runs/studies/none"},
                },
            },
        ),
        Study(
            "kl",
            "Which weight of the KL keeps the proxy from being hacked?",
            {
                f"kl_{weight:g}": {"objective.kl_weight": weight, "optimizer.learning_rate": 2e-4}
                for weight in (0.01, 0.1, 1.0, 10.0)
            }
            # The weight scales the loss, and AdamW's epsilon damps what is small: without it, the KL alone.
            | {
                f"kl_{weight:g}_no_epsilon": {
                    "objective.kl_weight": weight,
                    "optimizer.learning_rate": 2e-4,
                    "optimizer.epsilon": 1e-14,
                }
                for weight in (0.01, 10.0)
            },
            grids=True,
        ),
        Study(
            "offset",
            "Which objectives mind an offset of the reward that depends on the prompt alone?",
            {
                f"{method}_{size:g}": {**LARGE, **with_rate(method), **disturbed(size, 0.0)}
                for method in ("prdp", "ddpo_batch", "ddpo_group")
                for size in (0.1, 1.0)
            },
        ),
        Study(
            "noise",
            "Which objectives mind noise on the reward?",
            {
                f"{method}_{size:g}": {**LARGE, **with_rate(method), **disturbed(0.0, size)}
                for method in ("prdp", "ddpo_batch", "ddpo_group")
                for size in (0.05, 0.2)
            },
        ),
        Study(
            "staleness",
            "What do samples of older weights cost?",
            {
                "stale_0": with_rate("prdp"),
                **{
                    f"stale_{epochs}": {**with_rate("prdp"), "data.max_staleness": epochs}
                    for epochs in (1, 2, 4)
                },
            },
        ),
        Study(
            "judge",
            "A judge that says which of two images is better, now and then the wrong one, against the reward "
            "that it goes by.",
            {
                "pointwise": with_rate("prdp"),
                "judge": with_rate("prdp")
                | proxy("studies.scorers:NoisyJudge", temperature=0.02, difference=0.05),
            },
        ),
        Study(
            "samplers",
            "A flow model: which sampler, and which steps, for the same passes of the network?",
            {
                "flow_sde": flow(16),
                # As many updates as the windows have, of fewer prompts each.
                "flow_sde_26_updates": flow(26, prompts_per_epoch=5),
                "dance_sde": flow(18, sampler={"kind": "dance_sde"}),
                "cps": flow(22, sampler={"kind": "cps"}),
                "precise": flow(22, sampler={"kind": "precise"}),
                "window_fixed": flow(27, window={"kind": "fixed", "size": 3}),
                "window_random": flow(27, window={"kind": "random", "size": 3}),
                "window_moving": flow(27, window={"kind": "moving", "size": 3, "every_epochs": 7}),
                # Half of the queries of flow_sde, and a third of its passes.
                "half_window_fixed": flow(8, window={"kind": "fixed", "size": 3}),
                "half_cps": flow(8, sampler={"kind": "cps"}),
                "half_precise": flow(8, sampler={"kind": "precise"}),
            },
        ),
        Study(
            "flow_rates",
            "A flow model: which step size suits a whole run, and runs of half of its queries?",
            {
                f"{name}_{rate:g}": at_rate(rate, changes)
                for name, changes in FLOW_WORK.items()
                for rate in (2e-4, 5e-4, 1e-3)
            },
            seeds=(0,),
            curves={},
        ),
        Study(
            "same_bits",
            "Does a run on Ray give the bits of a cell?",
            {
                f"{method}_{where}": {**METHODS[method], "run.epochs": 8}
                for method in ("prdp", "ddpo_prompt")
                for where in ("here", "ray")
            },
            seeds=(0,),
            on_ray=frozenset({"prdp_ray", "ddpo_prompt_ray"}),
            curves={},
        ),
    )
}
