"""The Ray of a run: started on this machine, or joined; whether there is room in it; and its end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError, RayError

from common.cluster.process_failures import own_error
from common.cluster.references import GIVE_TOKEN, first_line
from common.config.paths import job_folder_is_a_copy
from common.config.schema import Config
from common.config.services import RaySection
from common.errors import ConfigError, PrdpError, StuckError

CODE_FOLDER = Path(__file__).resolve().parents[2]
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": "prdp"}
"""What workers print would tear the progress display; it stands in their log files."""
TRIES = 2
UNITS = {"CPU": "cpus", "GPU": "gpus"}
"""Ray's resources, and the setting of a section that reserves them for a process."""

# In a process of its own, which outlives the driver: its input ends with the driver.
_WATCH = """
import sys, psutil
agents = [psutil.Process(int(pid)) for pid in sys.argv[1:] if psutil.pid_exists(int(pid))]
sys.stdin.read()
for agent in psutil.wait_procs(agents, 2.0)[1]:
    agent.kill()
"""


@contextmanager
def ray_cluster(config: Config) -> Iterator[Path]:
    """Connect to the cluster, or start one on this machine and stop it at the end. Gives Ray's log folder.

    Raises ConfigError where there is no cluster to join, or it does not let us in; StuckError where one
    cannot be started here. An error of ours that comes out of a process of the cluster is raised as it is.
    """
    folder = _connect(config)
    with ExitStack() as at_end:
        if config.ray.address == "local":
            at_end.enter_context(agents_end_with_us())
        at_end.callback(ray.shutdown)
        try:
            if config.ray.address == "local":
                check_room(config, ray.cluster_resources())
            yield folder
        except (RayError, PrdpError) as error:
            own = own_error(error)
            if own is None or own is error:
                raise
            raise own from error


def _connect(config: Config) -> Path:
    section = config.ray
    if section.address == "local":
        return Path(start_local(section)["session_dir"]) / "logs"
    try:
        runtime_env = worker_environment(os.environ, Path.cwd())
        context: Any = ray.init(address=section.address, runtime_env=runtime_env, **QUIET)
    except AuthenticationError as error:
        raise ConfigError(f"The Ray cluster at {section.address!r} wants a token. {GIVE_TOKEN}") from error
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address is {section.address!r}, but no Ray cluster answers there: {error} Start this on a "
            "node of the cluster, or as a job (ray job submit), or set ray.address=local."
        ) from error
    except (RuntimeError, ValueError, OSError, RayError) as error:
        raise StuckError(
            f"The Ray cluster at {section.address!r} could not be joined: {first_line(error)} Its logs are "
            "in session_latest/logs under /tmp/ray, or under RAY_TMPDIR."
        ) from error
    return Path(context.address_info["session_dir"]) / "logs"


def start_local(section: RaySection) -> dict[str, Any]:
    """Start Ray here; tried again where it does not come up in time, as on a machine with much else to do.

    Returns its addresses. Raises ConfigError where it refuses the settings or the machine, StuckError where
    it does not come up.
    """
    options: dict[str, Any] = {
        "object_store_memory": int(section.object_store_gb * 1e9),
        "include_dashboard": section.dashboard,
    }
    for attempt in range(1, TRIES + 1):
        try:
            context: Any = ray.init(address="local", **options, **QUIET)
        except Exception as error:
            # What was half started ends with this process.
            ray.shutdown()
            late = isinstance(error, ConnectionError | TimeoutError)
            if isinstance(error, ValueError | OSError) and not late:
                raise ConfigError(
                    f"Ray cannot start here (ray.object_store_gb = {section.object_store_gb:g}): "
                    f"{first_line(error)}"
                ) from error
            if attempt == TRIES:
                raise StuckError(
                    f"Ray did not come up in {TRIES} tries: {first_line(error)} Has this machine too much "
                    "else to do? Ray's logs are in session_latest/logs under /tmp/ray, or under RAY_TMPDIR."
                ) from error
        else:
            found: dict[str, Any] = context.address_info
            return found
    raise AssertionError


def worker_environment(environ: Mapping[str, str], here: Path, code: Path = CODE_FOLDER) -> dict[str, Any]:
    """The runtime environment of a run's worker processes on a cluster that was there before it.

    In a job of `ray job submit --working-dir` Ray has seen to the code: every worker process of the job
    begins in a copy of the folder that was uploaded.

    Workers begin in a copy of the project's folder, so that they find its code, and relative paths of the
    configuration mean the same to them as to the driver. environ: of the driver; here: its folder; code: the
    folder that holds our packages. Empty where the job has brought the folder, or where the packages are
    installed (then on every node). Raises ConfigError where `here` is another folder than `code`.
    """
    if job_folder_is_a_copy(environ) or code.name in ("site-packages", "dist-packages"):
        return {}
    if here.resolve() != code:
        raise ConfigError(
            "A run on a cluster (ray.address is not local) gives its workers the folder that it is started "
            f"in, and here ({here}) the project is not. Start it in {code}, or submit it from there: "
            "ray job submit --working-dir . -- python train.py CONFIG.yaml"
        )
    return {"working_dir": str(code)}


@contextmanager
def agents_end_with_us() -> Iterator[None]:
    """Inside, the raylets that this process has started have children that end seconds after it.

    Ray's raylet and control store end with the driver, however that ends, and workers with the raylet. The
    raylet's agents do not: they try for a minute to tell the control store, which is gone.
    """
    raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
    agents = [str(agent.pid) for raylet in raylets for agent in raylet.children()]
    command = [sys.executable, "-c", _WATCH, *agents]
    watch = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        assert watch.stdin is not None
        watch.stdin.close()


def wanted_room(config: Config) -> dict[str, dict[str, float]]:
    """What all processes take at once, by unit of Ray's resources and by section; of actors, the minimum."""
    pools = {
        "actors": (config.actors, config.actors.minimum),
        "learner": (config.learner, config.learner.workers),
        "reward_service": (config.reward_service, len(config.embedded) * config.reward_service.replicas),
    }
    return {
        unit: {name: count * float(vars(section)[attribute]) for name, (section, count) in pools.items()}
        for unit, attribute in UNITS.items()
    }


def check_room(config: Config, resources: Mapping[str, float]) -> None:
    """Raise ConfigError where this machine can never hold all processes at once."""
    for unit, wanted in wanted_room(config).items():
        there = resources.get(unit, 0.0)
        if sum(wanted.values()) > there:
            raise ConfigError(
                f"The configuration asks for {sum(wanted.values()):g} {unit}s at once ({_parts(wanted)}); "
                f"this machine has {there:g}. Lower {UNITS[unit]} (what Ray reserves a process, shares "
                "allowed) or the number of processes."
            )


def missing_room(config: Config, free: Mapping[str, float]) -> list[str]:
    """What a cluster does not have free for all processes at once, in words: somebody will wait for room.
    And that there are GPUs which nobody will use."""
    lines = [
        f"The run takes {sum(wanted.values()):g} {unit}s ({_parts(wanted)}), and {free.get(unit, 0.0):g} are "
        "free in the cluster now: it begins once other work ends or nodes join."
        for unit, wanted in wanted_room(config).items()
        if sum(wanted.values()) > free.get(unit, 0.0)
    ]
    if free.get("GPU") and config.model.device == "auto" and not (config.actors.gpus or config.learner.gpus):
        lines.append(
            f"{free['GPU']:g} GPUs are free, and actors.gpus and learner.gpus are 0, so the run computes on "
            "CPUs. Give them GPUs, such as actors.gpus=0.4 learner.gpus=0.6."
        )
    return lines


def _parts(wanted: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in wanted.items())
