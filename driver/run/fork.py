"""A new run that begins with another run's checkpoint: its weights, optimizer state and averages.

The checkpoint becomes the new run's checkpoint of epoch 0, under a run id of its own. From there the run is
like any other that goes on, so it can be killed and gone on with at any moment.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from common.config.load import config_from_yaml_text, config_to_yaml
from common.config.schema import Config
from common.errors import CheckpointError, DamagedError, RunFolderError
from common.places import join_place, local_path, split_place
from driver.run.changes import MODEL, MODEL_PLACE, input_changes, setting_changes, unfit
from driver.run.checkpoints import FOLDER, Checkpoint, Checkpoints, RunState, read_checkpoint
from driver.run.folder import LOCK_FILE
from learner.state import HEADER_FILE, Header, read_header


def begin_fork(
    config: Config,
    place: str,
    inputs: Mapping[str, str] = MappingProxyType({}),
    accept_changes: bool = False,
) -> None:
    """Make the checkpoint at a path or URI the beginning of the configured run, whose folder is claimed.

    inputs: see RunState; those that are others than the checkpoint's run had are recorded as changes.
    accept_changes: also where one is a part of the model. Does nothing where the run is that fork already:
    the same command goes on with it, also where the checkpoint is gone. Raises RunFolderError where the
    folder holds any other run, CheckpointError where the checkpoint cannot be read or does not fit.
    """
    checkpoints = Checkpoints.of(config)
    checkpoints.check_writable()
    there = checkpoints.newest().checkpoint
    if there is not None:
        if _is_fork_of(there, place):
            return
        raise RunFolderError(f"{config.run_folder} {_described(there)} {_MEND}")
    try:
        source = read_checkpoint(place)
    except DamagedError as error:
        raise CheckpointError(f"{error} Checkpoints lie in RUN_FOLDER/checkpoints/epoch_…") from error
    forked_from = f"{_as_recorded(place)}{_OF_RUN}{source.state.run_id}"
    foreign = sorted({path.name for path in config.run_folder.iterdir()} - {LOCK_FILE, FOLDER})
    if foreign:
        raise RunFolderError(f"{config.run_folder} holds {', '.join(foreign[:5])} of another run. {_MEND}")
    check_fits(source, config, inputs, accept_changes)
    state = RunState(
        secrets.token_hex(6),
        epoch=0,
        tracker_run="",
        forked_from=forked_from,
        inputs=dict(inputs),
        changes=tuple((0, line) for line in input_changes(source.state.inputs, inputs)),
    )
    checkpoints.write(state, config_to_yaml(config), _without_what_is_in_flight(source.files))


def check_fits(
    source: Checkpoint,
    config: Config,
    inputs: Mapping[str, str] = MappingProxyType({}),
    accept_changes: bool = False,
) -> None:
    """Raise CheckpointError with every difference that keeps the policy from taking over the checkpoint.

    inputs, accept_changes: see begin_fork.
    """
    origin = f"the configuration of {source.place}"
    theirs = _with_whole_path(config_from_yaml_text(source.config_yaml, origin))
    ours = _with_whole_path(config)
    before = source.state.inputs
    of_model = [
        line
        for line in (
            *setting_changes(config_to_yaml(theirs), before, ours, inputs),
            *input_changes(before, inputs),
        )
        if line.startswith((*MODEL_PLACE, f"{MODEL} "))
    ]
    differences = [*([] if accept_changes else of_model), *unfit(theirs, ours)]
    if differences:
        mend = "; --accept-changes begins with another model all the same" if of_model else ""
        raise CheckpointError(
            f"The checkpoint {source.place} does not fit this configuration (its value against yours):\n  "
            + "\n  ".join(differences)
            + f"\nSet these as they are there; every other setting is free in a fork{mend}."
        )


_OF_RUN = " of run "
_MEND = "--fork begins a new run: choose another run.name, or leave out --fork to go on with that one."


def _is_fork_of(checkpoint: Checkpoint, place: str) -> bool:
    """Whether its run began with the checkpoint there, as far as that can still be read."""
    origin, _, run_id = checkpoint.state.forked_from.rpartition(_OF_RUN)
    if origin != _as_recorded(place):
        return False
    with suppress(CheckpointError):
        return read_checkpoint(place, lambda _file: False).state.run_id == run_id
    return True


def _as_recorded(place: str) -> str:
    """The place as every working folder and every spelling of it gives it. Reads nothing."""
    folder, name = split_place(place)
    path = local_path(folder)
    return join_place(folder, name) if path is None else str((path / name).resolve())


def _without_what_is_in_flight(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, but for the weights that the other run's trajectories in flight were sampled with."""
    return {**files, HEADER_FILE: Header(read_header(files).version).to_json()}


def _described(checkpoint: Checkpoint) -> str:
    state = checkpoint.state
    origin = f", forked from {state.forked_from}" if state.forked_from else ""
    return f"holds run {state.run_id} after epoch {state.epoch}{origin}."


def _with_whole_path(config: Config) -> Config:
    """A model's folder or file by its whole path, so that it is the same from every working folder."""
    given = {"path": config.model.path, "config": config.model.config}
    there = {key: Path(place) for key, place in given.items() if place and Path(place).exists()}
    whole = {key: str(path.resolve()) for key, path in there.items()}
    return config.model_copy(update={"model": config.model.model_copy(update=whole)})
