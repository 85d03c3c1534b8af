"""What a person sees and keeps at the end of a run: table, images, plots, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from common.config.load import config_to_yaml
from common.config.schema import Config
from common.places import join_place
from common.storage import replace_file, written_into
from driver.observe.observer import GRID, Observer, grid_file, shown_score
from driver.report.intervals import begun_late, change_markdown, change_table, compare
from driver.report.plots import write_plots
from driver.report.run_page import describe_run, how_it_was_made
from driver.report.tracker import Tracker
from driver.run.checkpoints import CONFIG_FILE, Checkpoints
from driver.run.reward_versions import VersionRecord
from learner.state import AVERAGED_FOLDER, POLICY_FOLDER


def show_result(config: Config, observer: Observer, tracker: Tracker, console: Console) -> None:
    """Table of before and after, grid, plots; to the terminal, the run folder and the tracker."""
    epochs, before, after = config.run.epochs, observer.evaluations[0], observer.evaluations[-1]
    changes, remark = compare(before, after), begun_late(before)
    replace_file(config.run_folder / "result.md", change_markdown(changes, remark).encode())
    replace_file(config.run_folder / CONFIG_FILE, config_to_yaml(config).encode())
    plots = config.run_folder / "plots"
    swaps = [(swap.epoch, f"{swap.name}: {swap.version}") for swap in observer.versions.swaps]
    with written_into(plots):
        write_plots(plots, observer.epochs, observer.evaluations, shown_score(config), swaps)
    tracker.log_folder(plots, "plots")
    images = (f"{GRID}.png", "plots/training_curve.png")
    tracker.set_description(describe_run(config, epochs, changes, tracker.run_id, images, remark))
    checkpoints = Checkpoints.of(config)
    if config.tracker.save_checkpoint:
        for name in (POLICY_FOLDER, AVERAGED_FOLDER):
            with checkpoints.on_disk(epochs, name) as folder:
                if folder.is_dir():
                    tracker.log_folder(folder, f"checkpoint/{name}")
    model = registered(config, observer, tracker) if config.tracker.register_as else None
    console.print(change_table(changes, f"{config.run.name}: {epochs} epochs", remark))
    checkpoint, timeline = checkpoints.where(epochs), observer.last_timeline
    lines = {
        "Images, same prompts and noise before and after": str(grid_file(config)),
        "Weights, as diffusers loads them": join_place(checkpoint, POLICY_FOLDER),
        "Look at the run": tracker.run_url_hint(),
        "Registered model": model,
        "Where the time of the last epoch went": timeline.advice() if timeline else None,
        "Sample": f"python sample.py {shlex.quote(after.sets[-1].prompts[0])} --checkpoint "
        f"{shlex.quote(checkpoint)}",
        "Go on": f"python train.py {config.run_folder / CONFIG_FILE} run.epochs={2 * epochs}",
    }
    for title, text in lines.items():
        if text:
            console.print(Text.assemble((f"{title}:", "bold"), f"\n  {text}"), soft_wrap=True)


def registered(config: Config, observer: Observer, tracker: Tracker) -> str | None:
    """The address of the model version that the final policy was made; None where that failed."""
    tags = policy_tags(config, observer.versions.records)
    folder = f"checkpoint/{POLICY_FOLDER}"
    return tracker.register(config.tracker.register_as, folder, how_it_was_made(config), tags)


def policy_tags(config: Config, versions: Sequence[VersionRecord]) -> dict[str, str]:
    """What made a policy: the run, its whole configuration, and each reward version that scored for it."""
    rewards: dict[str, list[str]] = {}
    for record in versions:
        digest = f" ({record.digest[:12]})" if record.digest else ""
        rewards.setdefault(record.name, []).append(f"{record.version}{digest} from epoch {record.epoch}")
    return {
        "run": config.run.name,
        "epochs": str(config.run.epochs),
        "config": config_to_yaml(config),
        **{f"reward/{name}": "; ".join(versions) for name, versions in rewards.items()},
    }
