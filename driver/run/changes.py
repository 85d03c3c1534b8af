"""What a run depends on, and what of it is another than when the run was begun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from common.config.load import config_differences, config_from_yaml_text
from common.config.schema import Config
from common.config.training import ModelSection
from common.model.digests import digest_parts
from common.model.single_file import known_config
from common.places import is_single_file
from driver.run.prompts import PromptSet
from driver.run.recordings import Recording

# Settings that may differ when a run goes on: they change neither the data nor the updates of an epoch.
FREE_SETTINGS = (
    "actors.",
    "checkpoint.",
    "data.record",
    "display.",
    "evaluation.every_epochs",
    "guards.",
    "learner.",
    "model.device",
    "model.text_encoder",
    "ray.",
    "reward_service.",
    "run.epochs",
    "run.folder",
    "tracker.",
)
MODEL = "model"
MODEL_PLACE = ("model.path", "model.config", "model.revision", "model.variant")
COVERED = {
    f"{MODEL} unet": MODEL_PLACE,
    f"{MODEL} transformer": MODEL_PLACE,
    "prompts.train": ("prompts.train.",),
    "prompts.unseen": ("prompts.unseen.",),
    "data.folder": ("data.folder",),
}
"""Settings that say where an input is. Where its digest is known, that alone says whether it is the same."""

Inputs = Mapping[str, str]
"""Digests (hex) of what a run reads, by name: a part of the model, a prompt set, a recording."""


def digest_inputs(
    config: Config, train: PromptSet, unseen: PromptSet, recording: Recording | None
) -> dict[str, str]:
    """The digests of everything that the configuration names. A hub's model has none until it is fetched.

    Digests of large files are kept beside the run folder. Raises ModelError, RecordingError.
    """
    recorded = {"data.folder": recording.digest()} if recording else {}
    return {
        **digest_model(config.model, config.run_folder.parent),
        "prompts.train": train.digest,
        "prompts.unseen": unseen.digest,
        **recorded,
    }


def digest_model(model: ModelSection, cache: Path | None) -> dict[str, str]:
    """The digests of the model's parts, as digest_inputs names them. cache: see digest_parts."""
    folder = model_folder(model)
    file = Path(model.path) if is_single_file(model.path) else None
    parts = digest_parts(folder, model.variant, cache, file) if folder else {}
    return {f"{MODEL} {part}": digest for part, digest in parts.items()}


def model_folder(section: ModelSection) -> Path | None:
    """Where the model's files are on this machine, of a single file those that it takes its configurations
    from; None for a hub's model that was not fetched."""
    place = section.path
    if is_single_file(place):
        place = section.config or known_config(Path(place))
    if Path(place).is_dir():
        return Path(place)
    found = try_to_load_from_cache(place, "model_index.json", revision=section.revision)
    return Path(found).parent if isinstance(found, str) else None


def find_changes(config_yaml: str, before: Inputs, config: Config, now: Inputs) -> list[str]:
    """One line for each setting and input that a run depends on and that is another one now.

    config_yaml, before: of the run so far. An input whose digest is not known of both counts by its settings.
    """
    return [*setting_changes(config_yaml, before, config, now), *input_changes(before, now)]


def setting_changes(config_yaml: str, before: Inputs, config: Config, now: Inputs) -> list[str]:
    """The lines for settings."""
    earlier = config_from_yaml_text(config_yaml, "the configuration of the run")
    known = before.keys() & now.keys()
    free = FREE_SETTINGS + tuple(key for name, keys in COVERED.items() if name in known for key in keys)
    return [line for line in config_differences(earlier, config) if not line.startswith(free)]


def input_changes(before: Inputs, now: Inputs) -> list[str]:
    """The lines for inputs."""
    return [
        f"{name}: digest {digest[:12]} against {now[name][:12]}"
        for name, digest in before.items()
        if name in now and now[name] != digest
    ]


def unfit(earlier: Config, config: Config) -> list[str]:
    """One line for each setting without which the policy cannot take over weights, state and averages."""
    lines = [line for line in config_differences(earlier, config) if line.startswith("policy.")]
    decays = earlier.optimizer.ema_decay, config.optimizer.ema_decay
    if earlier.keeps_averages != config.keeps_averages:
        kept = "averages kept or not, as there"
        kinds = f"objective.kind: {earlier.objective.kind} against {config.objective.kind}"
        settings = f"optimizer.ema_decay: {decays[0]:g} against {decays[1]:g}"
        lines.append(f"{settings if bool(decays[0]) != bool(decays[1]) else kinds} ({kept})")
    return lines
