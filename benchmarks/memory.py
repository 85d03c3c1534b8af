"""Growth of the learner's peak memory with the number of steps T and of images B."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
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
ABOUT = (
    "Peak memory of a learner above what it holds once its model is loaded, for T = 10 and 50 steps at the configuration's "
    "B and for B = 4 and 16 images at the configuration's T. Each figure is of a process of its own: resident memory on a "
    "CPU, allocated memory on a GPU; and the activations that autograd keeps, counted one by one."
)


@dataclass(frozen=True)
class Setting:
    """T and B."""

    steps: int
    images: int

    def __str__(self) -> str:
        return f"T = {self.steps}, B = {self.images}"


@dataclass(frozen=True)
class Growth:
    """From the smaller setting to the larger one, each of several processes' peaks."""

    small: Setting
    large: Setting
    small_peaks: tuple[Peak, ...]
    large_peaks: tuple[Peak, ...]

    @property
    def of_peak(self) -> float:
        """Relative growth of the peak above the loaded model: 0.05 = 5 %."""
        return median_bytes(self.large_peaks, "growth") / median_bytes(self.small_peaks, "growth") - 1

    @property
    def of_process(self) -> float:
        """Relative growth of the process's whole peak."""
        whole = [
            median_bytes(peaks, "loaded") + median_bytes(peaks, "growth") for peaks in (self.small_peaks, self.large_peaks)
        ]
        return whole[1] / whole[0] - 1

    @property
    def of_activations(self) -> float:
        """Relative growth of the bytes kept for the backward pass."""
        return median_bytes(self.large_peaks, "activations") / median_bytes(self.small_peaks, "activations") - 1


def median_bytes(peaks: Sequence[Peak], part: str) -> float:
    """Median over processes of one field."""
    return statistics.median(vars(peak)[part] for peak in peaks)


def probe_in_process(config: Config, setting: Setting) -> Peak:
    """Measure one setting: the peak by one process, the activations by another. Raises PrdpError where one fails."""
    sampling = config.sampling.model_copy(
        update={"steps": setting.steps, "images_per_prompt": setting.images, "stochastic_steps": "all_but_last"}
    )
    text = config_to_yaml(config.model_copy(update={"sampling": sampling}))
    plain, counted = (_run_probe(text, count) for count in (False, True))
    return Peak(plain.loaded, plain.growth, counted.activations)


def _run_probe(config_text: str, count_activations: bool) -> Peak:
    setting = json.dumps({"config": config_text, "groups": GROUPS, "count_activations": count_activations})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory_probe", setting],
        capture_output=True,
        text=True,
        timeout=PROBE_LIMIT_S,
        check=False,
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
    """Each setting in `repeats` processes, the settings in turns."""
    settings = list(dict.fromkeys(setting for pair in pairs for setting in pair))
    peaks: dict[Setting, list[Peak]] = {setting: [] for setting in settings}
    for _ in range(repeats):
        for setting in settings:
            peaks[setting].append(probe_in_process(config, setting))
    return [Growth(small, large, tuple(peaks[small]), tuple(peaks[large])) for small, large in pairs]


def verdict_of_growth(growth: Growth) -> Verdict:
    """A row."""
    small, large = (median_bytes(peaks, "growth") / 1e6 for peaks in (growth.small_peaks, growth.large_peaks))
    return Verdict(
        what=f"peak from {growth.small} to {growth.large}",
        value=f"{growth.of_peak:+.1%}",
        allowed=f"less than {LIMIT:.0%}",
        met=growth.of_peak < LIMIT,
        detail=f"{small:.1f} to {large:.1f} MB above the loaded model, medians of {len(growth.small_peaks)} processes",
    )


def measure(options: Options) -> Result:
    """Measure both growths."""
    config = options.config
    machine = Machine.here()
    found = measure_growth(config, pairs_of(config), options.repeats)
    figures = {}
    for growth in found:
        kept = [median_bytes(peaks, "activations") / 1e6 for peaks in (growth.small_peaks, growth.large_peaks)]
        name = f"{growth.small} to {growth.large}"
        figures[f"kept for the backward pass, {name}"] = f"{kept[0]:.1f} to {kept[1]:.1f} MB ({growth.of_activations:+.1%})"
        figures[f"whole process, {name}"] = f"{growth.of_process:+.1%}"
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
        verdicts=tuple(verdict_of_growth(growth) for growth in found),
        figures=figures,
        raw={
            str(setting): [vars(peak) for peak in peaks]
            for growth in found
            for setting, peaks in ((growth.small, growth.small_peaks), (growth.large, growth.large_peaks))
        },
    )


if __name__ == "__main__":
    sys.exit(run("memory", ABOUT, repeats=3, measure=measure))
