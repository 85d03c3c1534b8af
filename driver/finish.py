"""What a person sees and keeps at the end of a run: table, pictures, plots, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from common.config.schema import Config
from driver.observer import Observer, picture_file, shown_score
from driver.plots import role_times, step_gradient_norms, training_curve
from driver.report import change_markdown, change_table, compare
from driver.tracker import Tracker
from learner.checkpoint import checkpoint_folder
from learner.state import AVERAGED_FOLDER, POLICY_FOLDER


def show_result(config: Config, observer: Observer, tracker: Tracker, console: Console) -> None:
    """Table of before and after, grid, plots; to the terminal, the run folder and the tracker."""
    before, after = observer.evaluations[0], observer.evaluations[-1]
    changes = compare(before, after)
    grid = picture_file(config)
    observer.grid().save(grid)
    checkpoint = checkpoint_folder(config.run_folder, config.run.epochs)
    tracker.log_folder(write_plots(config.run_folder / "plots", observer, shown_score(config)), "plots")
    tracker.set_description(describe(config, change_markdown(changes)))
    if config.tracker.save_checkpoint:
        for folder in (POLICY_FOLDER, AVERAGED_FOLDER):
            if (checkpoint / folder).is_dir():
                tracker.log_folder(checkpoint / folder, f"checkpoint/{folder}")
    console.print(change_table(changes, f"{config.run.name}: {config.run.epochs} epochs"))
    prompt = after.sets[-1].prompts[0]
    for title, text in {
        "Pictures, same prompts and noise before and after": grid,
        "Weights, as diffusers loads them": checkpoint / POLICY_FOLDER,
        "Look at the run": tracker.run_url_hint(),
        "Sample": f'python sample.py "{prompt}" --checkpoint {checkpoint}',
        "Go on": f"python train.py {checkpoint / 'config.yaml'} run.epochs={2 * config.run.epochs}",
    }.items():
        console.print(f"[bold]{title}:[/bold]\n  {text}", soft_wrap=True, highlight=False)


def write_plots(folder: Path, observer: Observer, score: str) -> Path:
    """The plots of the epochs that this process trained. score: the one whose curve on unseen prompts is
    drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    training_curve(folder / "training_curve.png", observer.epochs, observer.evaluations, score)
    step_gradient_norms(folder / "step_gradient_norms.png", observer.epochs)
    role_times(folder / "role_times.png", observer.epochs)
    return folder


def describe(config: Config, table: str) -> str:
    """The run page's description, Markdown."""
    rewards: Mapping[str, float] = {name: spec.weight for name, spec in config.rewards.items()}
    mix = " + ".join(f"{weight:g} x {name}" for name, weight in rewards.items())
    return (
        f"# {config.run.name}\n\n"
        f"`{config.model.path}` finetuned by PRDP ({config.policy.kind}) on **{mix}**: "
        f"{config.run.epochs} epochs of "
        f"{config.sampling.prompts_per_epoch} prompts x {config.sampling.images_per_prompt} images, "
        f"{config.objective.updates_per_epoch} updates an epoch, kl_weight {config.objective.kl_weight:g}, "
        f"learning rate {config.optimizer.learning_rate:g}.\n\n{table}\n"
    )
