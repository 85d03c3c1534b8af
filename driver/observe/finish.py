"""What a person sees and keeps at the end of a run: table, pictures, plots, and what to type next."""

from __future__ import annotations

import shlex

from rich.console import Console

from common.config.load import config_to_yaml
from common.config.schema import Config
from common.storage import join_place, replace_file, written_into
from driver.observe.observer import Observer, picture_file, shown_score
from driver.report.intervals import begun_late, change_markdown, change_table, compare
from driver.report.plots import write_plots
from driver.report.run_page import describe_run, how_it_was_made
from driver.report.tracker import Tracker
from driver.report.tracker_registry import ModelVersion, policy_tags
from driver.run.checkpoints import CONFIG_FILE, Checkpoints
from learner.state import AVERAGED_FOLDER, POLICY_FOLDER


def show_result(config: Config, observer: Observer, tracker: Tracker, console: Console) -> None:
    """Table of before and after, grid, plots; to the terminal, the run folder and the tracker."""
    before, after = observer.evaluations[0], observer.evaluations[-1]
    changes, remark = compare(before, after), begun_late(before)
    grid = picture_file(config)
    replace_file(config.run_folder / "result.md", change_markdown(changes, remark).encode())
    checkpoints = Checkpoints.of(config)
    checkpoint = checkpoints.where(config.run.epochs)
    replace_file(config.run_folder / CONFIG_FILE, config_to_yaml(config).encode())
    with written_into(config.run_folder / "plots"):
        swaps = [(swap.epoch, f"{swap.name}: {swap.version}") for swap in observer.versions.swaps]
        plots = config.run_folder / "plots"
        write_plots(plots, observer.epochs, observer.evaluations, shown_score(config), swaps)
    tracker.log_folder(plots, "plots")
    pictures = (grid.name, "plots/training_curve.png")
    tracker.set_description(
        describe_run(config, config.run.epochs, changes, tracker.run_id, pictures, remark)
    )
    if config.tracker.save_checkpoint:
        for name in (POLICY_FOLDER, AVERAGED_FOLDER):
            with checkpoints.on_disk(config.run.epochs, name) as folder:
                if folder.is_dir():
                    tracker.log_folder(folder, f"checkpoint/{name}")
    models = registered(config, observer, tracker)
    last = observer.last_timeline
    console.print(change_table(changes, f"{config.run.name}: {config.run.epochs} epochs", remark))
    prompt = after.sets[-1].prompts[0]
    for title, text in {
        "Pictures, same prompts and noise before and after": grid,
        "Weights, as diffusers loads them": join_place(checkpoint, POLICY_FOLDER),
        "Look at the run": tracker.run_url_hint(),
        **{f"Registered model, version {model.rsplit('/')[-1]}": model for model in models},
        **({f"Where the time of epoch {last.epoch} went": last.advice()} if last else {}),
        "Sample": f'python sample.py "{prompt}" --checkpoint {shlex.quote(checkpoint)}',
        "Go on": f"python train.py {config.run_folder / CONFIG_FILE} run.epochs={2 * config.run.epochs}",
    }.items():
        console.print(f"[bold]{title}:[/bold]\n  {text}", soft_wrap=True, highlight=False)


def registered(config: Config, observer: Observer, tracker: Tracker) -> tuple[str, ...]:
    """The address of the model version that the final policy was made; none where it was not."""
    if not config.tracker.register_as:
        return ()
    tags = policy_tags(config.run.name, config.run.epochs, observer.versions.records, config_to_yaml(config))
    model = ModelVersion(
        config.tracker.register_as, f"checkpoint/{POLICY_FOLDER}", how_it_was_made(config), tags
    )
    return tracker.register(model)
