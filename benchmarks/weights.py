"""How long 1 GB of new weights takes from a learner to an actor, against a plain copy of as many bytes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import ray
import torch
from torch import nn

from actors.actor import Actor
from benchmarks.machine import Machine, usable_cores
from benchmarks.options import Options, run
from benchmarks.report import Result, Verdict
from common.config.schema import Config
from common.config.training import FullPolicy
from common.errors import WeightsError
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.weights import Weights, digest_tensors
from common.terminal import run_command
from common.trajectory import PolicyStamp
from learner.ranks import LearnerRank, LearnerRanks

LIMIT = 5.0
NUMBERS = 250_000_000
SHAPES = (
    (1280, 1280, 3, 3),
    (10240, 1280),
    (640, 640, 3, 3),
    (1280, 1280),
    (320, 320, 3, 3),
    (1280,),
    (320,),
)
"""Of Stable Diffusion 1.5's trained tensors."""
FLIPS = 10
ABOUT = (
    "Seconds from a learner's publish to an actor that holds the weights, for 1 GB of random float32 "
    "weights: the real Learner, LearnerRanks, object store and Actor. The processes work one after the "
    "other, so each may use all cores. A plain copy of the same bytes takes turns with it."
)


def load_large_policy(config: Config, network_only: bool = False) -> tuple[Policy, Steps]:
    """The configuration's fully trained policy with random tensors added that no pass uses.

    So the weights are as large as asked for, while the probe's pass costs what the small network takes.
    """
    policy, steps = load_policy(config, network_only)
    generator, sizes, left = torch.Generator().manual_seed(0), [], NUMBERS
    while left > 0:
        for shape in SHAPES:
            sizes.append(shape)
            left -= int(np.prod(shape))
    network: nn.Module = policy.family.network
    network.add_module(
        "ballast", nn.ParameterList(nn.Parameter(torch.randn(size, generator=generator)) for size in sizes)
    )
    return policy, steps


class LargeRank(LearnerRank):
    """A learner rank of such a policy."""

    def __init__(self, config: Config, run_id: str) -> None:
        with mock.patch("learner.build.load_policy", load_large_policy):
            super().__init__(config, run_id, rank=0, rendezvous=None)

    @torch.no_grad()
    def change(self) -> None:
        """Other weights, as an update would make."""
        for value in self._learner.parameters.values():
            value.mul_(1.001)

    def digest_s(self) -> float:
        """Seconds of the digest alone."""
        return _seconds(lambda: digest_tensors(self._learner.parameters))


class LoadingProcess:
    """An actor's process that only loads."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(config.actors.threads)
        self._policy, steps = load_large_policy(config, network_only=True)
        self._actor = Actor.of(self._policy, steps)

    def load(self, weights: Weights, stamp: PolicyStamp) -> float:
        """Seconds of the actor's load."""
        return _seconds(lambda: self._actor.load(weights, stamp))

    def parts_s(self, weights: Weights) -> dict[str, float]:
        """Seconds of the copy into the module and of the module's digest alone."""
        tensors = weights.tensors(weights.stamp)
        return {
            "copy into the module": _seconds(lambda: self._policy.load(tensors)),
            "the actor's digest": _seconds(lambda: digest_tensors(self._policy.trainable.parameters())),
        }

    def refuses(self, weights: Weights, place: int) -> bool:
        """Whether weights with one bit flipped are refused."""
        name = sorted(weights.arrays)[place % len(weights.arrays)]
        changed = weights.arrays[name].copy()
        changed.view(np.uint8).reshape(-1)[place % changed.nbytes] ^= 1 << place % 8
        try:
            self._actor.load(replace(weights, arrays={**weights.arrays, name: changed}), weights.stamp)
        except WeightsError:
            return True
        return False


@dataclass(frozen=True)
class Turn:
    """Seconds. load: what the actor says of its own; whole: from publish to loaded, as the driver sees it."""

    copy: float
    publish: float
    load: float
    whole: float


@contextmanager
def processes(config: Config) -> Iterator[tuple[LearnerRanks, Any, Any]]:
    """The ranks of a learner, the only one of them, and a process that loads."""
    # Ray runs its workers at niceness 15, which on a busy machine would compare priorities.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - that is its name
    ray.init(
        num_cpus=2,
        object_store_memory=4 * 2**30,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=40,
    )
    try:
        rank = ray.remote(LargeRank).remote(config, "benchmark")
        loader = ray.remote(LoadingProcess).remote(config)
        yield LearnerRanks(config, "benchmark", [rank]), rank, loader
    finally:
        ray.shutdown()


def measure(options: Options) -> Result:
    """Measure publish and load."""
    machine = Machine.here()
    cores = usable_cores()
    sections = {
        "learner": options.config.learner.model_copy(update={"workers": 1, "threads": cores}),
        "actors": options.config.actors.model_copy(update={"threads": cores}),
        "policy": FullPolicy(kind="full"),
    }
    config = options.config.model_copy(update=sections)
    turns: list[Turn] = []
    parts: list[dict[str, float]] = []
    source, target = np.random.default_rng(0).random(NUMBERS, dtype=np.float32), np.empty(NUMBERS, np.float32)
    with processes(config) as (group, rank, loader):
        for _ in range(options.warm_ups + options.repeats):
            ray.get(rank.change.remote())
            copy_s = _seconds(lambda: np.copyto(target, source))
            started = time.perf_counter()
            references = group.publish()
            (stamp,) = ray.get(references.stamps)
            published = time.perf_counter() - started
            load = ray.get(loader.load.remote(references.weights, stamp))
            turns.append(Turn(copy_s, published, load, time.perf_counter() - started))
            digest = {"the learner's digest": ray.get(rank.digest_s.remote())}
            parts.append(digest | ray.get(loader.parts_s.remote(references.weights)))
        (facts,) = ray.get(group.ready())
        ray.get(rank.change.remote())
        weights = group.publish().weights
        refused = sum(ray.get(loader.refuses.remote(weights, 7_654_321 * number)) for number in range(FLIPS))
    return result_of(
        options, machine, turns[options.warm_ups :], parts[options.warm_ups :], facts.nbytes, refused
    )


def result_of(
    options: Options,
    machine: Machine,
    turns: list[Turn],
    parts: list[dict[str, float]],
    nbytes: int,
    refused: int,
) -> Result:
    """The table: seconds, and as many copies of the same bytes."""
    copy_s = statistics.median(turn.copy for turn in turns) * nbytes / (4 * NUMBERS)

    def told(seconds: Iterator[float]) -> str:
        median = statistics.median(seconds)
        return f"{median:.3f} s, {median / copy_s:.2f} copies"

    whole = statistics.median(turn.whole for turn in turns)
    steps: Mapping[str, str] = {
        "publish (digest, one copy into the object store)": told(turn.publish for turn in turns),
        "load (one copy into the module, digest, probe)": told(turn.load for turn in turns),
        **{f"of these, {name}": told(part[name] for part in parts) for name in parts[0]},
    }
    return Result(
        name="weights",
        command=options.command,
        settings={"bytes": f"{nbytes:,}", "tensors": "float32", "threads a process": usable_cores()},
        machine=machine,
        verdicts=(
            Verdict(
                "from publish to loaded, in plain copies of the same bytes",
                f"{whole / copy_s:.2f}",
                f"at most {LIMIT:.0f}",
                whole / copy_s <= LIMIT,
                f"{whole:.3f} s against {copy_s:.3f} s a copy, medians of {len(turns)} turns",
            ),
            Verdict(
                "weights with one bit flipped that were refused",
                f"{refused} of {FLIPS}",
                "all",
                refused == FLIPS,
                "bits spread over tensors and bytes",
            ),
        ),
        figures={
            "bytes copied from module to module": f"{2 * nbytes:,} (two copies)",
            "bytes that come to the driver": "0",
            "a plain copy": f"{copy_s:.3f} s, {nbytes / copy_s / 1e9:.2f} GB/s",
            **steps,
        },
        raw={"turns": [vars(turn) for turn in turns], "parts": parts},
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_command(lambda arguments: run("weights", ABOUT, 9, measure, arguments))
