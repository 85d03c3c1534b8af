"""The pause that a checkpoint makes in a run: written in the background, over waited for."""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.loop import RUN_ID, OneProcess
from benchmarks.machine import Machine
from benchmarks.options import Options, run
from benchmarks.report import Result, raw_of, verdict_of
from benchmarks.timing import Comparison, Times, alternate, seconds_of
from common.config.load import config_to_yaml
from common.config.schema import Config
from common.model.weights import digest_tensors
from common.storage import LocalStorage
from driver.run.checkpoint_manager import CheckpointManager
from driver.run.checkpoints import Checkpoints, RunState
from driver.run.prompts import PromptStream, open_prompts
from learner.state import export_state

TARGET = 1.0
LARGE_MB = 256
CPU = torch.device("cpu")
ABOUT = (
    "What a run waits for a checkpoint: written beside the training, as runs do it, over waiting until it is "
    "on disk. First the pause alone; then whole epochs of the quickstart in one process, each with a "
    "checkpoint at its beginning, so that what the writing takes from the training counts too."
)


class Saves:
    """Checkpoints of the same files, one epoch after the other; only the last stays."""

    def __init__(self, config: Config, folder: Path, files: Mapping[str, bytes]) -> None:
        section = config.checkpoint.model_copy(update={"keep": 0})
        checkpoints = Checkpoints(LocalStorage(folder))
        self._keeper = CheckpointManager(
            config.model_copy(update={"checkpoint": section}), checkpoints, "", print
        )
        self._config_yaml = config_to_yaml(config)
        self._files = files
        self._epoch = 0

    def begin(self) -> None:
        """Have one written in the background."""
        self._epoch += 1
        state = RunState(RUN_ID, self._epoch, 0, "")
        self._keeper.save(state, self._config_yaml, self._files, self._epoch)

    def wait(self) -> None:
        """Until it is on disk."""
        self._keeper.wait()

    def whole(self) -> None:
        """Have one written, and wait."""
        self.begin()
        self.wait()


@dataclass(frozen=True)
class Stages:
    """Seconds of a checkpoint's stages, medians, and its size in bytes. weights: digest of the weights."""

    export: float
    digest: float
    weights_digest: float
    nbytes: int


def measure_pause(what: str, saves: Saves, repeats: int, warm_ups: int) -> Comparison:
    """The pause in the background and waited for, in turns. Nothing else runs meanwhile."""
    ours, bare = [], []
    for _ in range(warm_ups + repeats):
        ours.append(seconds_of(saves.begin, CPU))
        saves.wait()
        bare.append(seconds_of(saves.whole, CPU))
    return _comparison(what, [_times(ours[warm_ups:]), _times(bare[warm_ups:])], "pauses")


def measure_epochs(one: OneProcess, saves: Saves, repeats: int, warm_ups: int) -> Comparison:
    """Epochs with a checkpoint at their beginning, which is on disk when they end."""

    def beside(number: int) -> None:
        saves.begin()
        one.epoch(number)
        saves.wait()

    def before(number: int) -> None:
        saves.whole()
        one.epoch(number)

    return _comparison(
        "epochs with a checkpoint each", alternate([beside, before], repeats, warm_ups, CPU), "epochs"
    )


def measure_stages(one: OneProcess, repeats: int) -> Stages:
    """Export by the learner, digests of the files, digest of the weights as every publication takes it."""
    files = export_state(one.learner)
    return Stages(
        export=_median(lambda: export_state(one.learner), repeats),
        digest=_median(lambda: [hashlib.sha256(data).hexdigest() for data in files.values()], repeats),
        weights_digest=_median(lambda: digest_tensors(one.learner.parameters), repeats),
        nbytes=sum(len(data) for data in files.values()),
    )


def measure(options: Options) -> Result:
    """Measure the configuration's checkpoints, and large ones of random bytes."""
    config, repeats, warm_ups = options.config, options.repeats, options.warm_ups
    machine = Machine.here()
    torch.set_num_threads(1)
    one = OneProcess.build(config, PromptStream(open_prompts(config.prompts.train), config.run.seed))
    with tempfile.TemporaryDirectory(dir=options.out.parent) as temporary:
        folder = Path(temporary)
        # AdamW has its state after a first step.
        one.epoch(0)
        stages = measure_stages(one, repeats)
        own = Saves(config, folder / "own", export_state(one.learner))
        large = Saves(config, folder / "large", {"random.bin": os.urandom(LARGE_MB * 1_000_000)})
        pauses = [
            measure_pause(f"pause of a checkpoint of {stages.nbytes / 1e6:.0f} MB", own, repeats, warm_ups),
            measure_pause(f"pause of a checkpoint of {LARGE_MB} MB", large, repeats, warm_ups),
        ]
        epochs = measure_epochs(one, own, repeats, warm_ups)
    return Result(
        name="checkpoint",
        command=options.command,
        settings={
            "model": config.model.path,
            "policy": config.policy.kind,
            "N": config.sampling.prompts_per_epoch,
            "B": config.sampling.images_per_prompt,
            "T": config.sampling.steps,
            "threads": 1,
        },
        machine=machine,
        verdicts=tuple(verdict_of(found) for found in (*pauses, epochs)),
        figures=figures_of(stages, pauses, epochs),
        raw={found.what: raw_of(found) for found in (*pauses, epochs)} | {"stages": vars(stages)},
        notes=(
            "An epoch here is one of the quickstart in one process of one thread: on Ray it is shorter, and "
            "the shares larger by as much. The learner's export is part of both sides of a run's pause, and "
            "of neither here.",
        ),
    )


def figures_of(stages: Stages, pauses: Sequence[Comparison], epochs: Comparison) -> dict[str, str]:
    """Milliseconds, and shares of an epoch without what a checkpoint takes."""
    waited = statistics.median(pauses[0].bare.wall)
    epoch = statistics.median(epochs.bare.wall) - waited
    figures = {f"{found.what}: in the background": _ms(found.ours) for found in pauses}
    figures |= {f"{found.what}: waited for": _ms(found.bare) for found in pauses}
    return figures | {
        "an epoch": f"{epoch:.2f} s",
        "the learner's export of its state": _share(stages.export, epoch),
        "digests of the checkpoint's files": _share(stages.digest, epoch),
        "digest of the weights, one an actor and publication": _share(stages.weights_digest, epoch),
        "the checkpoint in the background": _share(statistics.median(pauses[0].ours.wall), epoch),
        "the checkpoint waited for": _share(waited, epoch),
    }


def _comparison(what: str, sides: Sequence[Times], unit: str) -> Comparison:
    ours, bare = sides
    return Comparison(what=what, items=1, unit=unit, ours=ours, bare=bare, target=TARGET)


def _times(taken: Sequence[tuple[float, float]]) -> Times:
    return Times(*zip(*taken, strict=True))


def _median(call: Callable[[], object], repeats: int) -> float:
    return statistics.median(seconds_of(call, CPU)[0] for _ in range(repeats))


def _ms(times: Times) -> str:
    return f"{1000 * statistics.median(times.wall):.2f} ms"


def _share(seconds: float, epoch: float) -> str:
    return f"{1000 * seconds:.2f} ms, {seconds / epoch:.3%} of an epoch"


if __name__ == "__main__":
    sys.exit(run("checkpoint", ABOUT, repeats=5, measure=measure))
