"""The description on a run's page in MLflow: the result first, then images, then how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from common.config.schema import Config
from driver.report.intervals import ScoreChange, change_markdown, headline
from driver.report.markdown import code

ROOM = "\u00a0\u00a0"
"""Two spaces that MLflow keeps; it draws tables without any room between columns."""


def describe_run(
    config: Config,
    epochs: int,
    changes: tuple[ScoreChange, ...],
    run_id: str,
    images: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Markdown. epochs: finished ones; run_id: MLflow's; images: PNG artifacts of the run to show; notes:
    stand below the table."""
    scores = [*config.gold, *(() if config.gold else ("reward",))]
    lines = [headline(changes, score) for score in scores]
    results = [f"**{line}** after {epochs} epochs" for line in lines if line]
    shown = [f"![{file}]({artifact_address(run_id, file)})" for file in images]
    table = _roomy(change_markdown(changes, notes))
    return "\n\n".join([*results, table, *shown, how_it_was_made(config)]) + "\n"


def _roomy(table: str) -> str:
    """A Markdown table with room between its columns; the line below the header must stay as it is."""
    lines = table.strip().splitlines()
    return "\n".join(line if "---" in line else line.replace(" | ", f"{ROOM} | {ROOM}") for line in lines)


def artifact_address(run_id: str, file: str) -> str:
    """Address of an artifact relative to the interface's own, whatever the server is called."""
    return f"get-artifact?path={quote(file)}&run_uuid={run_id}"


def how_it_was_made(config: Config) -> str:
    """The settings that matter most, as a Markdown list."""
    sampling, learning = config.sampling, config.objective.model_dump(mode="json")
    facts = {
        "model": f"{code(config.model.path)}, {config.policy.kind} finetuning",
        "reward": " + ".join(f"{spec.weight:g} × {name}" for name, spec in config.rewards.items()),
        "an epoch": f"{sampling.prompts_per_epoch} prompts × {sampling.images_per_prompt} images",
        "sampling": f"{sampling.steps} steps by {sampling.sampler.kind}, learned from: "
        f"{sampling.stochastic_steps}, guidance {sampling.guidance_scale:g}",
        "objective": ", ".join(f"{name} {value}" for name, value in learning.items()),
        "learning rate": f"{config.optimizer.learning_rate:g}",
        "data": f"{config.data.mode}, staleness at most {config.data.max_staleness}, seed {config.run.seed}",
    }
    lines = [f"- {name}: {fact}" for name, fact in facts.items()]
    return "\n".join([*lines, "", "All settings: `config.yaml`. What each metric means: `metrics.md`."])
