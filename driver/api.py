"""The trainer from Python: a call for each thing that a person does. The commands print what these give.

Nothing heavy is imported before a call needs it. Errors are PrdpErrors that say how to mend what was given.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.load import config_from_yaml_text, load_config
from common.config.paths import check_paths
from common.config.schema import Config
from common.errors import CheckpointError, ConfigError, DamagedError, RewardError, RunFolderError
from common.terminal import need_docstrings, say
from driver.ray_environment import check_temporary_folder, prepare
from driver.report.store_check import check_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.trajectory import GroupScore
    from driver.report.evaluation import Evaluation
    from driver.suite_comparison import SuiteComparison


def load(
    config: str | Path | None = None, checkpoint: str | None = None, changes: Sequence[str] = ()
) -> Config:
    """The configuration in a YAML file, or else the one that a checkpoint was trained with.

    changes: "key=value" each, as on the command line. Raises ConfigError, or CheckpointError where
    `checkpoint` is none.
    """
    if isinstance(changes, str):
        raise ConfigError(f"changes must be a list of texts, got the text {changes!r}; write [{changes!r}].")
    _check("config", config, str, Path, type(None))
    _check("checkpoint", checkpoint, str, type(None))
    if config is not None:
        return load_config(Path(config), changes)
    if checkpoint is None:
        raise ConfigError(
            "Name a policy: a checkpoint (--checkpoint PLACE), or a configuration for the pretrained model "
            "(--config FILE)."
        )
    from driver.run.checkpoints import CONFIG_FILE, read_checkpoint

    try:
        found = read_checkpoint(checkpoint, lambda file: file == CONFIG_FILE)
    except DamagedError as error:
        raise CheckpointError(f"{error} Checkpoints lie in RUN_FOLDER/checkpoints/epoch_…") from error
    return config_from_yaml_text(found.config_yaml, f"the configuration of {checkpoint}", changes)


def train(config: Config, fork: str | None = None, accept_changes: bool = False) -> bool:
    """Train to the end, or until stopped by Ctrl-C or a notebook's stop button; False where stopped.

    What was stopped has a checkpoint, and the same call goes on from there. fork: the checkpoint that a new
    run begins with. accept_changes: go on though the run's model, prompts or settings have changed.
    """
    _check("config", config, Config)
    need_docstrings()
    _check_surroundings(config)
    prepare(config.ray, os.environ)
    say(f"Starting {config.run.name} in {config.run_folder}: its libraries load.")
    check_store(config.tracker.uri)

    from driver.main import train as run
    from driver.report.console import PlainConsole

    with _a_loop_of_its_own():
        return run(config, PlainConsole(), fork, accept_changes) == 0


def check(config: Config) -> None:
    """Check what a run checks before it starts anything: folders, the tracker's store, the prompts, the
    model's files (no weights are loaded), and the rewards, of which addresses are asked.

    Applications of a cluster (`app`) and what is there of an earlier run of that name are not looked at.
    Raises the PrdpError that the run would end with.
    """
    _check("config", config, Config)
    need_docstrings()
    _check_surroundings(config)
    check_store(config.tracker.uri)

    from driver.main import check_inputs

    with _a_loop_of_its_own():
        check_inputs(config)


def _check_surroundings(config: Config) -> None:
    check_paths(config, os.environ, Path.cwd())
    if config.ray.address == "local":
        check_temporary_folder(os.environ)


def history(config: Config) -> list[dict[str, float | None]]:
    """What the tracker knows of a run: a row for each epoch, oldest first, with "epoch" and every metric.

    None stands where a metric was not measured in an epoch. Raises RunFolderError where there is no run,
    TrackerError where its store does not answer.
    """
    from driver.report.tracker import read_history
    from driver.run.folder import read_journal

    journal = read_journal(config.run_folder)
    if journal is None:
        raise RunFolderError(f"{config.run_folder} holds no run; train one, or name another by run.name.")
    return read_history(config.tracker, config.run_folder.parent, journal.tracker_run)


def checkpoints(config: Config) -> list[str]:
    """Where a run's checkpoints are, oldest first."""
    from driver.run.checkpoints import Checkpoints

    found = Checkpoints.of(config)
    return [found.where(epoch) for epoch in found.epochs()]


def sample(
    prompt: str, checkpoint: str | None = None, config: Config | None = None, images: int = 1, seed: int = 0
) -> NDArray[np.uint8]:
    """Images, uint8 (B, height, width, 3), of a checkpoint; without one, of config's pretrained model."""
    _check("prompt", prompt, str)
    _check_policy(checkpoint, config)
    if type(images) is not int or images < 1:
        raise ConfigError(f"images must be a whole number, at least 1, got {images!r}.")
    need_docstrings()
    from common.trajectory import NoiseKey
    from driver.standalone import policy_of

    policy = policy_of(config or load(checkpoint=checkpoint), checkpoint)
    return policy.images(prompt, images, NoiseKey(seed, "sample", 0, 0))


def score(prompt: str, images: NDArray[np.uint8], config: Config) -> GroupScore:
    """What the rewards of a configuration, gold ones included, say of images, uint8 (B, height, width, 3).

    Raises RewardError where one cannot be built or fails, and for what are no images.
    """
    _check("prompt", prompt, str)
    _check("config", config, Config)
    need_docstrings()
    import numpy as np

    from reward_service.client.local import local_rewards
    from reward_service.contract.reward import bad_images

    if not isinstance(images, np.ndarray):
        raise RewardError(
            "Images must be one array, uint8 (B, height, width, 3), such as np.stack makes of a list; "
            f"got a {type(images).__name__}."
        )
    if failure := bad_images((prompt, images)):
        raise RewardError(failure.reason)

    with _a_loop_of_its_own():
        rewards = local_rewards(config.rewards, config.gold, config.reward_service)
        return rewards.score_group(prompt, images, with_gold=True)


def evaluate(
    checkpoint: str | None = None,
    config: Config | None = None,
    prompts: str | None = None,
    against: str | None = None,
) -> tuple[Evaluation, ...]:
    """The pretrained model measured, and then the checkpoint where one is given, with the same noise.

    prompts: a prompt set, instead of the configuration's seen and unseen prompts. against: another checkpoint
    of that pretrained model, measured in its place; of its own configuration only `policy` counts. Judges
    compare the images of the two. Raises CheckpointError, RewardError.
    """
    _check_policy(checkpoint, config)
    _check("prompts", prompts, str, type(None))
    _check("against", against, str, type(None))
    if against is not None and checkpoint is None:
        raise ConfigError(
            "against (--against) is compared with another checkpoint: name it too (checkpoint, --checkpoint)."
        )
    need_docstrings()
    from driver.report.console import PlainConsole, plain_progress
    from driver.standalone import measure, policy_of, prompt_sets, with_preferences
    from reward_service.client.local import local_rewards

    config = config or load(checkpoint=checkpoint)
    first = config if against is None else config.model_copy(update={"policy": load(None, against).policy})
    # The checkpoint first: where it cannot be loaded, nothing has been measured in vain.
    policies = [(config, checkpoint), (first, against)] if checkpoint is not None else [(config, None)]
    with _a_loop_of_its_own(), plain_progress(PlainConsole()) as progress:
        rewards = local_rewards(config.rewards, config.gold, config.reward_service)
        sets = prompt_sets(config, prompts)
        last, *first_ones = [
            measure(config, policy_of(*policy), rewards, sets, progress, keep_images=bool(rewards.judges))
            for policy in policies
        ]
        if not first_ones:
            return (last.evaluation,)
        (before,) = first_ones
        return before.evaluation, with_preferences(config, before, last, rewards, progress)


def evaluate_suite(
    suite: str,
    checkpoint: str,
    config: Config | None = None,
    guidances: Sequence[float] = (),
    prompts: int | None = None,
    alone: bool = False,
) -> SuiteComparison:
    """A checkpoint against the pretrained model on a prompt suite and, unless alone, on training's prompts.

    suite: a name or file, see driver/run/suites.py. guidances: those that the pretrained model is tried at,
    beside the configuration's own; prompts: how many of the suite are drawn, None for all. Raises
    PromptSetError, ConfigError, RewardError.
    """
    _check("suite", suite, str)
    _check_policy(checkpoint, config)
    need_docstrings()
    from driver.report.console import PlainConsole, plain_progress
    from driver.run.suites import read_suite
    from driver.suite_comparison import compare_on_suite
    from reward_service.client.local import local_rewards

    found = read_suite(suite)
    config = config or load(checkpoint=checkpoint)
    if prompts is not None:
        found = found.sample(prompts, config.evaluation.seed)
    with _a_loop_of_its_own(), plain_progress(PlainConsole()) as progress:
        rewards = local_rewards(config.rewards, config.gold, config.reward_service)
        return compare_on_suite(config, checkpoint, found, guidances, rewards, progress, alone)


def _check_policy(checkpoint: object, config: object) -> None:
    _check("checkpoint", checkpoint, str, type(None))
    _check("config", config, Config, type(None))


def _check(name: str, value: object, *allowed: type) -> None:
    """Raise ConfigError where an argument is of none of these types. Its value, long as it may be, is not
    repeated."""
    if not isinstance(value, allowed):
        words = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
        raise ConfigError(f"{name} must be {words}, got {type(value).__name__}.")


@contextmanager
def _a_loop_of_its_own() -> Iterator[None]:
    """A notebook runs its cells inside an event loop. That one waits, as it does for anything in a cell."""
    outer: Any = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)
