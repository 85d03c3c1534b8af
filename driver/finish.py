"""What a person sees and keeps at the end of a run: table, images, plots, and what to type next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from common.config.load import config_to_yaml, public_yaml
from common.config.schema import Config
from common.places import join_place
from common.storage import replace_file, written_into
from common.terminal import beside_python
from driver.observe.observer import GRID, Observer, grid_file, shown_score
from driver.report.console import PlainConsole
from driver.report.evaluation import Evaluation
from driver.report.intervals import change_markdown, change_table, compare
from driver.report.plots import write_plots
from driver.report.run_page import describe_run, how_it_was_made
from driver.report.showing import showing
from driver.report.tracker import Tracker
from driver.run.checkpoints import CONFIG_FILE, Checkpoints
from driver.run.reward_versions import VersionRecord
from learner.state import AVERAGED_FOLDER, POLICY_FOLDER


def show_result(
    config: Config,
    observer: Observer,
    tracker: Tracker,
    console: PlainConsole,
    accepted: Sequence[tuple[int, str]] = (),
) -> None:
    """Table of before and after, grid, plots; to the run folder and the tracker, then to the terminal.

    accepted: after how many epochs the run went on with something changed, and what.
    What cannot be written or shown is said, and the rest goes on: the training is done.
    """

    def note(text: str) -> None:
        console.print(text, style="bold red", soft_wrap=True)

    epochs, folder = config.run.epochs, config.run_folder
    changes = compare(observer.evaluations)
    since = max((epoch for epoch, _ in accepted), default=0)
    nothing = nothing_learned(config, observer.evaluations, since)
    notes = [nothing] if nothing else []
    notes += [f"Changed from epoch {epoch} on: {text}" for epoch, text in accepted]
    with showing("result.md", note):
        replace_file(folder / "result.md", change_markdown(changes, notes).encode())
    with showing(CONFIG_FILE, note):
        replace_file(folder / CONFIG_FILE, config_to_yaml(config).encode())
    plots = folder / "plots"
    marks = [(swap.epoch, f"{swap.name}: {swap.stamp}") for swap in observer.versions.swaps]
    marks += [(epoch, f"changed: {text.split(':')[0]}") for epoch, text in accepted]
    with showing("The plots", note), written_into(plots):
        write_plots(plots, observer.epochs, observer.evaluations, shown_score(config), marks)
        tracker.log_folder(plots, "plots")
    with showing("The run's page", note):
        images = (f"{GRID}.png", "plots/training_curve.png")
        tracker.set_description(describe_run(config, epochs, changes, tracker.run_id, images, notes))
    with showing("The final policy", note):
        _log_policy(config, epochs, tracker)
    if nothing:
        note(nothing)
    model = registered(config, observer, tracker) if config.tracker.register_as else None
    with showing("The table", note):
        console.print(change_table(changes, f"{config.run.name}: {epochs} epochs", notes))
    checkpoint, timeline = Checkpoints.of(config).where(epochs), observer.last_timeline
    prompt = observer.evaluations[-1].sets[-1].prompts[0]
    lines = {
        "Images, same prompts and noise before and after": str(grid_file(config)),
        "Weights, as diffusers loads them": join_place(checkpoint, POLICY_FOLDER),
        "Look at the run": tracker.run_url_hint(),
        "Registered model": model,
        "Where the time of the last epoch went": timeline.advice() if timeline else None,
        **next_commands(config, checkpoint, prompt),
    }
    for title, text in lines.items():
        if text:
            console.print(f"{title}:", style="bold", soft_wrap=True)
            console.print(f"  {text}", soft_wrap=True)


def next_commands(config: Config, checkpoint: str, prompt: str) -> dict[str, str]:
    """What to type next, as a shell reads it."""
    file = str(config.run_folder / CONFIG_FILE)
    python = beside_python(Path(sys.executable).name)
    words = {
        "Sample": [python, "sample.py", "--checkpoint", checkpoint, "--", prompt],
        "Go on": [python, "train.py", file, f"run.epochs={2 * config.run.epochs}"],
    }
    return {title: shlex.join(command) for title, command in words.items()}


def nothing_learned(config: Config, evaluations: Sequence[Evaluation], since: int = 0) -> str:
    """How many updates were skipped between the first evaluation and the last, and whether the weights are
    the same; empty where all is well. since: the epoch from which on the configuration was this one."""
    measured = [one for one in evaluations if one.epoch >= since]
    first, last = measured[0], measured[-1]
    updates = (last.epoch - first.epoch) * config.objective.updates_per_epoch
    skipped = updates - (last.stamp.version - first.stamp.version)
    told = f"{skipped} of {updates} updates were skipped" if skipped else ""
    if updates and last.stamp.digest == first.stamp.digest:
        return f"NOTHING WAS LEARNED: the weights are those of the beginning. {told}".strip()
    return told


def _log_policy(config: Config, epochs: int, tracker: Tracker) -> None:
    """The final weights, as files of the tracker's run."""
    if not config.tracker.save_checkpoint:
        return
    for name in (POLICY_FOLDER, AVERAGED_FOLDER):
        with Checkpoints.of(config).on_disk(epochs, name) as folder:
            if folder.is_dir():
                tracker.log_folder(folder, f"checkpoint/{name}")


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
        "config": public_yaml(config),
        **{f"reward/{name}": "; ".join(versions) for name, versions in rewards.items()},
    }
