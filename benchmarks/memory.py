"""Growth of the learner's peak memory with the number of steps T and of images B."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.machine import Machine
from benchmarks.memory_probe import Peak
from benchmarks.options import Options, run
from benchmarks.report import Result, Verdict
from common.config.load import config_to_yaml
from common.config.schema import Config
from common.errors import PrdpError

LIMIT = 0.05
GROUPS = 2
PROBE_LIMIT_S = 900.0
# glibc then gives each tensor of 64 KiB or more pages of its own and returns them at once.
PAGES_OF_THEIR_OWN = {"MALLOC_MMAP_THRESHOLD_": "65536"}
ABOUT = (
    "Peak memory of a learner above what it holds once its model is loaded, for T = 10 and 50 steps at the "
    "configuration's B, and for B = 4 and 16 images at the configuration's T. Each figure is of a process "
    "of its own. On a CPU it is resident memory, once as the tensors need it (the heap gives every tensor "
    "pages of its own) and once with the C library's usual heap, whose gaps count too; on a GPU it is "
    "allocated memory. Besides, the activations that autograd keeps are counted one by one."
)


@dataclass(frozen=True)
class Setting:
    """T and B."""

    steps: int
    images: int

    def __str__(self) -> str:
        return f"T = {self.steps}, B = {self.images}"


@dataclass(frozen=True)
class Kind:
    """How a process is measured. environment: variables it is given. Counting itself takes memory."""

    name: str
    environment: Mapping[str, str]
    count_activations: bool


TENSORS = Kind("peak of the tensors", PAGES_OF_THEIR_OWN, count_activations=False)
USUAL_HEAP = Kind("peak with the usual heap", {}, count_activations=False)
ACTIVATIONS = Kind("activations", {}, count_activations=True)
KINDS = (TENSORS, USUAL_HEAP, ACTIVATIONS)


@dataclass(frozen=True)
class Growth:
    """From the smaller setting to the larger one: several processes' peaks of one kind."""

    kind: Kind
    small: Setting
    large: Setting
    small_peaks: tuple[Peak, ...]
    large_peaks: tuple[Peak, ...]

    def of(self, *parts: str) -> float:
        """Relative growth of the sum of some fields: 0.05 = 5 %."""
        return self.large_bytes(*parts) / self.small_bytes(*parts) - 1

    def small_bytes(self, *parts: str) -> float:
        """Median over processes of the sum of some fields."""
        return _median_of(self.small_peaks, parts)

    def large_bytes(self, *parts: str) -> float:
        """Median over processes of the sum of some fields."""
        return _median_of(self.large_peaks, parts)


def _median_of(peaks: Sequence[Peak], parts: Sequence[str]) -> float:
    return statistics.median(sum(vars(peak)[part] for part in parts) for peak in peaks)


def probe_in_process(config: Config, setting: Setting, kind: Kind) -> Peak:
    """Measure one setting by a process of its own. Raises PrdpError where it fails."""
    changed = {
        "steps": setting.steps,
        "images_per_prompt": setting.images,
        "stochastic_steps": "all_but_last",
    }
    sampling = config.sampling.model_copy(update=changed)
    asked = {
        "config": config_to_yaml(config.model_copy(update={"sampling": sampling})),
        "groups": GROUPS,
        "count_activations": kind.count_activations,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory_probe", json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=PROBE_LIMIT_S,
        check=False,
        env={**os.environ, **kind.environment},
    )
    if done.returncode:
        raise PrdpError(f"The memory probe ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def pairs_of(config: Config) -> list[tuple[Setting, Setting]]:
    """T from 10 to 50, and B from 4 to 16."""
    sampling = config.sampling
    return [
        (Setting(10, sampling.images_per_prompt), Setting(50, sampling.images_per_prompt)),
        (Setting(sampling.steps, 4), Setting(sampling.steps, 16)),
    ]


def measure_growth(config: Config, pairs: Sequence[tuple[Setting, Setting]], repeats: int) -> list[Growth]:
    """Each setting and kind in `repeats` processes, in turns; what is counted exactly, in one."""
    settings = list(dict.fromkeys(setting for pair in pairs for setting in pair))
    peaks: dict[tuple[Setting, str], list[Peak]] = {
        (one, kind.name): [] for one in settings for kind in KINDS
    }
    for turn in range(repeats):
        for kind in [kind for kind in KINDS if turn == 0 or not kind.count_activations]:
            for setting in settings:
                peaks[setting, kind.name].append(probe_in_process(config, setting, kind))
    return [
        Growth(kind, small, large, tuple(peaks[small, kind.name]), tuple(peaks[large, kind.name]))
        for kind in KINDS
        for small, large in pairs
    ]


def verdict_of_growth(growth: Growth) -> Verdict:
    """A row."""
    small, large = growth.small_bytes("growth") / 1e6, growth.large_bytes("growth") / 1e6
    return Verdict(
        what=f"{growth.kind.name}, {growth.small} to {growth.large}",
        value=f"{growth.of('growth'):+.1%}",
        allowed=f"less than {LIMIT:.0%}",
        met=growth.of("growth") < LIMIT,
        detail=(
            f"{small:.1f} to {large:.1f} MB above the loaded model, "
            f"medians of {len(growth.small_peaks)} processes each"
        ),
    )


def figures_of(growths: Sequence[Growth]) -> dict[str, str]:
    """Kept activations, and the whole process with the usual heap."""
    figures = {}
    for growth in growths:
        name = f"{growth.small} to {growth.large}"
        if growth.kind == ACTIVATIONS:
            small, large = growth.small_bytes("activations") / 1e6, growth.large_bytes("activations") / 1e6
            change = f"{growth.of('activations'):+.1%}"
            figures[f"kept for the backward pass, {name}"] = f"{small:.1f} to {large:.1f} MB ({change})"
        if growth.kind == USUAL_HEAP:
            figures[f"whole process with the usual heap, {name}"] = f"{growth.of('loaded', 'growth'):+.1%}"
    return figures


def measure(options: Options) -> Result:
    """Measure both growths."""
    config = options.config
    machine = Machine.here()
    found = measure_growth(config, pairs_of(config), options.repeats)
    return Result(
        name="memory",
        command=options.command,
        settings={
            "model": config.model.path,
            "policy": config.policy.kind,
            "micro-batch": config.learner.micro_batch_size,
            "groups an update": GROUPS,
            "threads": config.learner.threads,
        },
        machine=machine,
        verdicts=tuple(verdict_of_growth(growth) for growth in found if growth.kind != ACTIVATIONS),
        figures=figures_of(found),
        raw={
            f"{growth.kind.name}, {setting}": [vars(peak) for peak in peaks]
            for growth in found
            for setting, peaks in ((growth.small, growth.small_peaks), (growth.large, growth.large_peaks))
        },
    )


if __name__ == "__main__":
    sys.exit(run("memory", ABOUT, repeats=2, measure=measure))
