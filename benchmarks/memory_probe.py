"""One process that learns one setting and says how much memory that took.

Started as python -m benchmarks.memory_probe SETTING by benchmarks.memory.

SETTING is JSON: {"config": YAML text, "groups": groups in the update, "count_activations": bool}. Prints one
line of JSON.
"""

from __future__ import annotations

import json
import math
import sys
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config.load import config_from_yaml_text
from common.config.schema import Config
from common.errors import ConfigError
from common.model.loading import load_policy
from common.trajectory import GroupScore, NoiseKey, PolicyStamp, ScoredGroup, TrajectoryGroup, separate_nodes
from learner.build import build_learner
from learner.learner import Learner
from learner.parallel import Single

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Bytes. loaded: once the learner is built; growth: the peak above; activations: kept by autograd."""

    loaded: int
    growth: int
    activations: int


class ActivationMeter:
    """Counts the bytes that autograd keeps for the backward pass, each storage once, without parameters."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._ignored = {value.untyped_storage().data_ptr() for value in parameters}
        self._uses: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def hooks(self) -> Any:
        """A context in which it counts."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._ignored or not size:
            return kept
        self._now += size if address not in self._uses else 0
        self._uses[address] = self._uses.get(address, 0) + 1
        self.peak = max(self.peak, self._now)
        weakref.finalize(kept, self._release, address, size)
        return kept

    def _release(self, address: int, size: int) -> None:
        self._uses[address] -= 1
        if not self._uses[address]:
            del self._uses[address]
            self._now -= size


class _Kept:
    """A saved tensor that can be watched."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def made_up_group(
    config: Config,
    schedule: str,
    shape: tuple[int, int, int],
    stamp: PolicyStamp,
    condition: Mapping[str, NDArray[Any]],
) -> ScoredGroup:
    """A group of the configuration's B and T with random contents: memory does not depend on them."""
    images, steps = config.sampling.images_per_prompt, config.sampling.steps
    stochastic = range(steps - 1)
    generator = np.random.default_rng(0)
    trajectory = TrajectoryGroup(
        prompt="a prompt",
        noise=NoiseKey(0, "train", 0, 0),
        stamp=stamp,
        latents=generator.standard_normal((images * (steps + 1), *shape), dtype=np.float32),
        nodes=separate_nodes(images, steps),
        times=np.arange(steps)[::-1].astype(np.float64),
        stochastic_steps=np.array(stochastic, dtype=np.int64),
        log_prob=np.zeros((images, len(stochastic))),
        log_ratio=np.zeros((images, len(stochastic)), dtype=np.float32),
        condition=condition,
        schedule=schedule,
    )
    return ScoredGroup(trajectory, GroupScore.pointwise(generator.standard_normal(images), {}, ()))


def probe(config: Config, groups: int, count_activations: bool) -> Peak:
    """Build the learner, note what is in use, and learn one update of so many groups.

    Counting activations takes memory itself, so a process measures either them or the peak.
    """
    torch.set_num_threads(config.learner.threads)
    policy, distribution = load_policy(config)
    condition = {name: rows.cpu().numpy() for name, rows in policy.embed("a prompt").items()}
    schedule, shape = policy.schedule(distribution), policy.family.latent_shape
    learner = build_learner(config, "benchmark", Single())
    cuda = policy.family.device.type == "cuda"
    del policy
    stamp = learner.publish().stamp
    meter = ActivationMeter(list(learner.parameters.values()))
    loaded = _loaded(cuda)
    if count_activations:
        with meter.hooks():
            _learn(learner, config, groups, schedule, shape, stamp, condition)
    else:
        _learn(learner, config, groups, schedule, shape, stamp, condition)
    return Peak(loaded, _peak(cuda) - loaded, meter.peak)


def _learn(
    learner: Learner,
    config: Config,
    groups: int,
    schedule: str,
    shape: tuple[int, int, int],
    stamp: PolicyStamp,
    condition: Mapping[str, NDArray[Any]],
) -> None:
    for _ in range(groups):
        learner.accumulate([made_up_group(config, schedule, shape, stamp, condition)])
    report = learner.finish_update()
    if not (report.applied and math.isfinite(report.gradient_norm)):
        raise RuntimeError(f"the update was not applied: {report}")


def _loaded(cuda: bool) -> int:
    """Bytes in use now; a peak asked for later is counted from now on."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        RESET_PEAK.write_text("5")
    except OSError as error:
        raise ConfigError(
            f"On a CPU the peak is measured by Linux's {RESET_PEAK}, which fails here: {error}"
        ) from error
    return _status("VmRSS")


def _peak(cuda: bool) -> int:
    return torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")


def _status(field: str) -> int:
    """A field of Linux's process status, in bytes."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    setting = json.loads(sys.argv[1])
    peak = probe(config_from_yaml_text(setting["config"]), setting["groups"], setting["count_activations"])
    print(json.dumps(asdict(peak)))
