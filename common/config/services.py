"""Settings of the parts: run folder, Ray, actors, learner, rewards, evaluation, tracker, display."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Tag, field_validator, model_validator

from common.config.fields import Section, setting
from common.config.paths import OutputPath
from common.config.safety import refuse_credentials
from common.places import expanded, is_rooted

LARGEST_SEED = 2**32 - 1


class RunSection(Section, title="The run as a whole."):
    name: str = setting("prdp", "", "Name of the run: its folder under `folder` and its name in the tracker.")
    folder: OutputPath = setting("runs", "", "Parent of the run folder.", min_length=1)
    seed: int = setting(0, "", "Seed of the order of prompts and of all noise.", ge=0, le=LARGEST_SEED)
    epochs: int = setting(100, "epochs", "E: epochs in all, those of a continued run included.", ge=1)

    @field_validator("folder")
    @classmethod
    def _on_this_machine(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(f"got {value!r}; write a path: a URI is for checkpoint.folder or tracker.uri")
        return value

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(f"{value!r} cannot be a folder name; use letters, digits, '.', '_' and '-'")
        return value


class RaySection(Section, title="The Ray cluster."):
    address: str = setting(
        "local",
        "",
        "local = start one on this machine and stop it at the end; auto = the cluster this machine is in.",
        min_length=1,
    )
    dashboard: bool = setting(True, "", "Start the dashboard (address local only).")
    worker_niceness: int = setting(
        0,
        "",
        "Niceness of the run's processes (address local only): 0 = as much of the machine as any other "
        "program; up to 19 = give way to others. (Ray's own default is 15: on a busy machine a run hardly "
        "moves then.)",
        ge=0,
        le=19,
    )
    object_store_gb: float = setting(1.0, "GB", "Object store size (address local only).", gt=0.07)
    start_limit_s: float = setting(
        1800.0,
        "s",
        "Longest that the start of ranks, actors and rewards may take: machines that the cluster starts for "
        "it, weights that are fetched from the hub, loading. (A scorer has 600 s to be built.)",
        gt=0.0,
    )


class PlacementSection(Section, title="Where a pool of processes runs and what each process takes."):
    cpus: float = setting(1.0, "CPUs", "CPUs Ray reserves for each process.", ge=0.0)
    gpus: float = setting(
        0.0, "GPUs", "GPUs, or a share of one, for each process; with 0 it sees none.", ge=0.0
    )
    threads: int = setting(1, "threads", "CPU threads of each process (torch and OpenMP).", ge=1)
    labels: dict[str, str] = setting({}, "", "Labels of the nodes to be placed on, e.g. {role: actor}.")

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"got {value}; above 1 a process takes whole GPUs")
        return value


class ActorsSection(PlacementSection, title="The pool that samples trajectories."):
    count: int = setting(2, "processes", "Actors in the pool; those without room join when there is.", ge=1)
    minimum: int = setting(
        1, "processes", "The run begins, and goes on, while so many actors are ready.", ge=1
    )
    tasks_in_flight: int = setting(
        2, "tasks", "Tasks (prompts) an actor holds at once: one in work, the rest waiting.", ge=1
    )
    task_retries: int = setting(
        3, "tries", "How often a task is redone when its actor dies, before the run stops.", ge=0
    )
    restarts: int = setting(
        10, "restarts", "Deaths of actors within an hour, not those of nodes, before the run stops.", ge=0
    )
    timeout_s: float = setting(
        600.0, "s", "Longest wait for any task to finish, and for actors where too few are ready.", gt=0.0
    )

    @model_validator(mode="after")
    def _minimum_within_count(self) -> ActorsSection:
        if self.minimum > self.count:
            raise ValueError(f"minimum ({self.minimum}) cannot exceed count ({self.count})")
        return self


class LearnerSection(PlacementSection, title="The process or processes that learn."):
    workers: int = setting(1, "processes", "Ranks; groups are split among them and gradients summed.", ge=1)
    micro_batch_size: int = setting(
        32, "image-steps", "(image, step) pairs in one forward and backward pass: bounds its memory.", ge=1
    )
    step_norms_every: int = setting(
        10, "epochs", "Epochs between those whose gradient is also measured step by step; 0 = never.", ge=0
    )
    gradient_checkpointing: bool = setting(
        False, "", "Recompute the network's activations in the backward pass."
    )
    snapshots: bool = setting(
        True,
        "",
        "Keep the learner's state after each epoch in the object store, so that a learner that dies goes on "
        "from there; false saves that memory, and epochs since the last checkpoint are done again.",
    )
    restarts: int = setting(
        20, "restarts", "Deaths of the learner in an hour, not those of nodes, before the run stops.", ge=0
    )
    timeout_s: float = setting(1800.0, "s", "Longest wait for one learner call.", gt=0.0)


Option = str | int | float | bool


class ScorerSection(Section, title="A scorer and what it is built from."):
    scorer: str = setting(..., "", "A shipped scorer's name, or my_package.my_module:MyScorer.", min_length=1)
    options: dict[str, Option] = setting(
        {}, "", "Keyword arguments of the scorer, e.g. {path: folder}; a text such as ~/models/x is a path."
    )
    pairs: int = setting(0, "pairs", "Pairs a group that a judge of single pairs is asked; 0 = all.", ge=0)

    @field_validator("options")
    @classmethod
    def _whole_paths(cls, value: Mapping[str, Option]) -> dict[str, Option]:
        """Which options are paths only the scorer knows, but what begins like one is meant as one."""
        return {
            name: expanded(option) if isinstance(option, str) and is_rooted(option) else option
            for name, option in value.items()
        }


class RewardSpec(
    ScorerSection,
    title="Embedded: the run starts an application of its own for it, and ends it.",
):
    weight: float = setting(
        1.0, "", "Weight in the sum of raw rewards; gold has no part in it, so it is ignored there."
    )


class AppReward(
    Section,
    title="Deployed separately on the same Ray cluster: asked by its handle, and left alone otherwise.",
):
    app: str = setting(..., "", "Name of a running Serve application of the reward service.", min_length=1)
    weight: float = setting(
        1.0, "", "Weight in the sum of raw rewards; gold has no part in it, so it is ignored there."
    )


class UrlReward(Section, title="Anywhere else: asked over HTTP."):
    url: str = setting(..., "", "Base address, such as https://host:8000/pickscore.", min_length=1)
    weight: float = setting(
        1.0, "", "Weight in the sum of raw rewards; gold has no part in it, so it is ignored there."
    )
    token_env: str = setting("", "", "Environment variable that holds the bearer token; empty = no token.")
    insecure: bool = setting(False, "", "Send the token even over http:// to another machine.")

    @field_validator("url")
    @classmethod
    def _an_http_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is no address: {error}") from error
        if parts.username is not None or parts.password is not None:
            raise ValueError("the address holds a user name or password; give the token by token_env")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"got {value!r}; an address begins with http:// or https:// and a host")
        if parts.query or parts.fragment:
            raise ValueError(f"got {value!r}; the base address has no '?' and no '#'")
        return value.rstrip("/")

    @field_validator("token_env")
    @classmethod
    def _a_variable(cls, value: str) -> str:
        # The value is not repeated: somebody may have put the token itself there.
        if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)?", value):
            raise ValueError("must be the name of an environment variable (MY_TOKEN), not the token")
        return value


REWARD_FORMS: dict[str, type[Section]] = {"scorer": RewardSpec, "app": AppReward, "url": UrlReward}
"""The forms of a reward, by the key that only it has."""


def reward_form(value: object) -> str | None:
    """The one key among those of REWARD_FORMS that is given; None where there is none or more than one."""
    given = value if isinstance(value, Mapping) else vars(value) if isinstance(value, Section) else {}
    found = [key for key in REWARD_FORMS if key in given]
    return found[0] if len(found) == 1 else None


RewardEntry = Annotated[
    Annotated[RewardSpec, Tag("scorer")]
    | Annotated[AppReward, Tag("app")]
    | Annotated[UrlReward, Tag("url")],
    Discriminator(reward_form),
]


class BatchSection(Section, title="How a scorer is given groups."):
    max_batch_groups: int = setting(
        1, "groups", "Groups scored in one call. Above 1, scores depend on their company by rounding.", ge=1
    )
    batch_wait_s: float = setting(0.005, "s", "Longest wait for a batch to fill.", ge=0.0, le=60.0)
    timeout_s: float = setting(120.0, "s", "Longest that a scorer may work on one batch of groups.", gt=0.0)


class RewardServiceSection(
    BatchSection,
    PlacementSection,
    title="How rewards are asked; and the application of each embedded one.",
):
    replicas: int = setting(1, "processes", "Replicas of the application.", ge=1)
    queue_groups: int = setting(64, "groups", "Groups sent and not yet answered, at most.", ge=1)
    outage_s: float = setting(
        300.0, "s", "Longest that a reward may answer nothing at all before its groups are dropped.", gt=0.0
    )
    retries: int = setting(2, "tries", "How often a failed group is scored again before it is dropped.", ge=0)
    max_dropped_share: float = setting(
        0.1, "", "The run stops where more than this share of an epoch's groups was dropped.", ge=0.0, lt=1.0
    )


class EvaluationSection(
    Section,
    title="What is measured before, during and after training, with the same prompts and noise each time.",
):
    prompts: int = setting(32, "prompts", "Prompts of each kind, seen and unseen.", ge=2)
    images_per_prompt: int = setting(2, "images", "Images of each prompt.", ge=1)
    every_epochs: int = setting(
        5, "epochs", "Evaluate each so many epochs; always before the first and after the last.", ge=1
    )
    grid_prompts: int = setting(6, "prompts", "Unseen prompts shown in the picture grid.", ge=1)
    seed: int = setting(1234, "", "Seed of the choice of prompts and of their noise.", ge=0, le=LARGEST_SEED)
    deterministic: bool = setting(
        False,
        "",
        "No step draws noise, as most people sample a finetuned model: the first latent alone is random. "
        "False = as training samples.",
    )

    @model_validator(mode="after")
    def _grid_is_evaluated(self) -> EvaluationSection:
        if self.grid_prompts > self.prompts:
            raise ValueError(f"grid_prompts ({self.grid_prompts}) cannot exceed prompts ({self.prompts})")
        return self


class TrackerSection(Section, title="MLflow."):
    uri: OutputPath = setting(
        "",
        "",
        "Tracking URI; empty = an SQLite store and local artifacts in run.folder. Credentials come from the "
        "environment.",
    )
    experiment: str = setting("prdp", "", "Experiment name.", min_length=1)
    save_checkpoint: bool = setting(True, "", "Log the final policy folder as an artifact.")
    register_as: str = setting(
        "", "", "Name of the model that the final policy is registered as a version of; empty = of none."
    )

    @field_validator("uri")
    @classmethod
    def _without_credentials(cls, value: str) -> str:
        refuse_credentials(
            value,
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of a server, PGPASSWORD of PostgreSQL",
        )
        return value

    @field_validator("register_as")
    @classmethod
    def _a_model_name(cls, value: str) -> str:
        if not re.fullmatch(r"[^/:]{0,200}", value):
            raise ValueError(f"{value!r} cannot be a model's name in MLflow; leave out '/' and ':'")
        return value

    @model_validator(mode="after")
    def _registered_is_logged(self) -> TrackerSection:
        if self.register_as and not self.save_checkpoint:
            raise ValueError(
                "register_as needs save_checkpoint: true, because a model is made of its artifacts"
            )
        return self


class DisplaySection(Section, title="What the terminal shows."):
    mode: Literal["auto", "live", "lines"] = setting(
        "auto", "", "live = one display; lines = a line now and then; auto = live on a terminal."
    )
    line_seconds: float = setting(15.0, "s", "Seconds between lines.", gt=0.0)
    timelines: int = setting(
        10, "epochs", "Timelines kept in the run folder, those of the last epochs; 0 = none.", ge=0
    )
