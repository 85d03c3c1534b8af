"""A checkpoint against its base on a prompt suite, in the way that others can compare with.

Every image is sampled with the same steps, size and noise. The checkpoint is compared with the base at the
same guidance, and with the base at its best guidance: for each prompt set and score the one of a short list
that gave the highest mean on these very prompts, which can only favour the base. Training's prompts (seen,
unseen) are in-domain, the suite is out-of-domain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.progress import Progress

from common.config.load import config_from_yaml_text, config_to_yaml
from common.config.schema import Config
from common.errors import PromptSetError
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.report.intervals import (
    ScoreChange,
    change_markdown,
    compare,
    score_intervals,
    side_by_side_markdown,
)
from driver.report.markdown import code, plain_markdown
from driver.run.suites import Suite
from driver.standalone import load_checkpoint, load_pretrained, measure, prompt_sets
from reward_service.client.local import LocalRewards


@dataclass(frozen=True)
class SuiteComparison:
    """bases: the pretrained model's evaluation by guidance, that of config among them. All evaluations hold
    the same sets; the suite's is the last, with its prompts in the suite's order."""

    config: Config
    checkpoint: str
    suite: Suite
    trained: Evaluation
    bases: Mapping[float, Evaluation]

    @property
    def guidance(self) -> float:
        """What the checkpoint was sampled with."""
        return self.config.sampling.guidance_scale

    def best_guidances(self) -> dict[str, dict[str, float]]:
        """The base's best guidance by prompt set and score. Best is the highest mean, but the lowest of a
        reward that is trained on with a negative weight."""
        weights = {name: entry.weight for name, entry in self.config.rewards.items()}

        def quality(guidance: float, place: int, score: str) -> float:
            mean = float(self.bases[guidance].sets[place].scores[score].mean())
            return -mean if weights.get(score, 1.0) < 0.0 else mean

        return {
            evaluated.name: {
                score: max(self.bases, key=lambda guidance: quality(guidance, place, score))
                for score in evaluated.scores
            }
            for place, evaluated in enumerate(self.trained.sets)
        }

    def base_at_best(self) -> Evaluation:
        """The base with every score at the guidance that is best for it."""
        best, base = self.best_guidances(), self.bases[self.guidance]
        sets = tuple(
            replace(
                own,
                scores={
                    score: self.bases[guidance].sets[place].scores[score]
                    for score, guidance in best[own.name].items()
                },
            )
            for place, own in enumerate(base.sets)
        )
        return replace(base, sets=sets)

    def changes(self, base: Evaluation) -> tuple[ScoreChange, ...]:
        """The checkpoint against one of the baselines, in-domain and out-of-domain."""
        return compare([base, self.trained])

    def changes_by_category(self, base: Evaluation) -> tuple[ScoreChange, ...]:
        """The same of each category of the suite; empty where it has none."""
        return compare([self._by_category(base), self._by_category(self.trained)])

    @property
    def _models(self) -> dict[str, Evaluation]:
        return {"trained": self.trained} | {f"base at {g:g}": base for g, base in self.bases.items()}

    def _by_category(self, evaluation: Evaluation) -> Evaluation:
        categories = np.array([prompt.category for prompt in self.suite.prompts])
        names = [name for name in dict.fromkeys(categories.tolist()) if name]
        suite = evaluation.sets[-1]
        return replace(evaluation, sets=tuple(_rows_of(suite, name, categories == name) for name in names))

    def baselines(self) -> dict[str, Evaluation]:
        """The base at the checkpoint's guidance and, where others were tried, at its best one, by title."""
        found = {f"Base at guidance {self.guidance:g}": self.bases[self.guidance]}
        if len(self.bases) > 1:
            tried = ", ".join(f"{guidance:g}" for guidance in self.bases)
            found[f"Base at its best guidance of {tried}"] = self.base_at_best()
        return found

    def markdown(self) -> str:
        """The report: the checkpoint against both baselines, in-domain, out-of-domain and by category."""
        parts = [
            f"# {plain_markdown(self.suite.name)}",
            f"Checkpoint {code(self.checkpoint)} at guidance {self.guidance:g}, pretrained model "
            f"{code(self.config.model.path)} (base).",
        ]
        for title, base in self.baselines().items():
            parts += [
                f"## {title}",
                change_markdown(self.changes(base)),
                "Differences, training's prompts (in-domain) beside the suite (out-of-domain):",
                side_by_side_markdown(self.changes(base)),
            ]
            if by_category := self.changes_by_category(base):
                parts += ["By category:", change_markdown(by_category)]
        values = self.settings() | {"best_guidances": self.best_guidances()}
        settings = "\n".join(f"    {name}: {json.dumps(value)}" for name, value in values.items())
        return "\n\n".join([*parts, "## Settings", settings]) + "\n"

    def settings(self) -> dict[str, Any]:
        """What has to be the same for another's numbers to be comparable. Sizes in pixels."""
        sampling, pixels = self.config.sampling, self.trained.sets[-1].pixels
        return {
            "suite": self.suite.name,
            "suite_digest": self.suite.digest,
            "suite_prompts": len(self.suite.prompts),
            "own_prompts": {own.name: len(own.prompts) for own in self.trained.sets[:-1]},
            "model": self.config.model.path,
            "model_revision": self.config.model.revision,
            "model_dtype": self.config.model.dtype,
            "model_precision": self.config.model.precision,
            "checkpoint": asdict(self.trained.stamp),
            "guidance": self.guidance,
            "base_guidances": list(self.bases),
            "steps": sampling.steps,
            "sampler": sampling.sampler.model_dump(mode="json"),
            "stochastic_steps": sampling.stochastic_steps,
            "max_step_gain": sampling.max_step_gain,
            "height": pixels.shape[1],
            "width": pixels.shape[2],
            "images_per_prompt": self.config.evaluation.images_per_prompt,
            "seed": self.config.evaluation.seed,
            "deterministic": self.config.evaluation.deterministic,
            "scorers": {name: list(words) for name, words in self.trained.sets[-1].versions.items()},
        }

    def result(self) -> dict[str, Any]:
        """Settings and means with half-widths of 95 % intervals, for programs: by model, set and score.

        mean_of_categories: of the suite's categories, each counted once, as GenEval's overall score does.
        """
        return {
            "settings": self.settings(),
            "best_guidances": self.best_guidances(),
            "scores": {name: self._means(evaluation) for name, evaluation in self._models.items()},
        }

    def _means(self, evaluation: Evaluation) -> dict[str, Any]:
        slices = self._by_category(evaluation).sets
        means = {
            part.name: {score: _plain(asdict(interval)) for score, interval in score_intervals(part).items()}
            for part in (*evaluation.sets, *slices)
        }
        overall = {
            score: float(np.mean([part.scores[score].mean() for part in slices]))
            for score in (slices[0].scores if slices else ())
        }
        return {**means, "mean_of_categories": overall}

    def prompt_lines(self) -> str:
        """JSON lines, one for each prompt of the suite: its metadata, and every image's scores by model."""
        lines = [
            json.dumps(
                {
                    **asdict(prompt),
                    "scores": {
                        name: {score: x[row].tolist() for score, x in evaluation.sets[-1].scores.items()}
                        for name, evaluation in self._models.items()
                    },
                }
            )
            for row, prompt in enumerate(self.suite.prompts)
        ]
        return "\n".join(lines) + "\n"


def at_guidance(config: Config, guidance: float) -> Config:
    """The same configuration with another guidance. Raises ConfigError where it cannot be."""
    change = f"sampling.guidance_scale={guidance!r}"
    return config_from_yaml_text(config_to_yaml(config), "the configuration", [change])


def compare_on_suite(
    config: Config,
    checkpoint: str,
    suite: Suite,
    guidances: Sequence[float],
    rewards: LocalRewards,
    progress: Progress,
    alone: bool = False,
) -> SuiteComparison:
    """Measure the checkpoint at the configuration's guidance, the base there and at each of guidances.
    alone: without training's own prompts.

    The checkpoint first: where it cannot be loaded, nothing has been measured in vain. Raises RewardError,
    PromptSetError.
    """
    sets = {} if alone else prompt_sets(config, None)
    if suite.name in sets:
        raise PromptSetError(f"{suite.origin}: training's own prompts are called {suite.name!r}; rename it")
    sets[suite.name] = [(one.index, one.prompt) for one in suite.prompts]
    own = config.sampling.guidance_scale
    configs = {guidance: at_guidance(config, guidance) for guidance in sorted({own, *guidances})}
    trained = measure(config, load_checkpoint(config, checkpoint), rewards, sets, progress).evaluation
    bases = {
        guidance: measure(changed, load_pretrained(changed), rewards, sets, progress).evaluation
        for guidance, changed in configs.items()
    }
    return SuiteComparison(config, checkpoint, suite, trained, bases)


def _rows_of(evaluated: PromptSetEvaluation, category: str, rows: np.ndarray) -> PromptSetEvaluation:
    """rows: bool (P,), the prompts of one category."""
    return replace(
        evaluated,
        name=f"{evaluated.name}: {category}",
        prompts=tuple(prompt for prompt, here in zip(evaluated.prompts, rows, strict=True) if here),
        scores={score: values[rows] for score, values in evaluated.scores.items()},
        pixels=evaluated.pixels[:0],
    )


def _plain(interval: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: the half-width of one prompt is null."""
    return {name: value if np.isfinite(value) else None for name, value in interval.items()}
