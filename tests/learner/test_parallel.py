"""Two real processes agree on the gradient that one would have."""

from __future__ import annotations

import json
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn

from common.errors import ConfigError
from common.model.weights import Tensors
from common.trajectory import ScoredGroup
from driver.run.recordings import TrajectoryWriter, open_recording
from learner.learner import Learner
from learner.old_policy import Offline
from learner.parallel import Parallel, Replicated, Single, connect, listen, listen_only_at
from learner.report import UpdateOutcome, UpdateReport
from learner.state import export_state, restore_state
from tests.learner.support import double_policy, make_learner, sample_double, scored, weights_of

TIMEOUT_S = 120.0
EPOCHS = (((1,), ("a cat", "two red birds", "the sea")), ((), ("an old tree",)))
"""Of each, where trajectories split, and prompts."""
REWARDS = (0.1, 0.3, 0.2)
OVERRIDES = {"sampling.steps": 3, "policy": {"kind": "lora", "rank": 2, "alpha": 4}}


SETTINGS: dict[str, Any] = {"clip_range": 0.02, "updates": 2, "step_norms_every": 0, "term_share": 0.7}


def _train(parallel: Parallel, count: int, pipeline: Path, folder: Path) -> None:
    """Two epochs of two updates of a part of the terms, the first of two trees a prompt, the second with a
    group for one rank only; writes weights and reports. The first epoch is recorded, and learned from the
    recording."""
    policy, reference, steps = double_policy(pipeline, folder, OVERRIDES)
    learner = make_learner(policy, steps, parallel=parallel, **SETTINGS)
    reports: list[UpdateReport] = []
    for epoch, (branch_at, prompts) in enumerate(EPOCHS):
        stamp, groups = learner.publish().stamp, []
        for position, prompt in enumerate(prompts):
            group = sample_double(
                policy,
                reference,
                steps,
                stamp,
                prompt,
                4,
                10 * epoch + position,
                torch.float32,
                branch_at,
            )
            assert group.log_ratio is not None
            group = replace(group, log_ratio=group.log_ratio.astype(np.float32))
            groups.append(scored(group, [*REWARDS, 0.45 + 0.1 * position]))
        reports += _epoch(learner, groups, count, parallel.rank)
        if epoch == 0:
            recorded = folder / f"recorded{parallel.rank}"
            TrajectoryWriter(recorded).write_epoch(0, groups)
            _replay(parallel, count, pipeline, recorded, reports, weights_of(policy))
    safetensors.torch.save_file(dict(learner.parameters), folder / f"rank{parallel.rank}.safetensors")
    for name, data in export_state(learner).items():
        path = folder / f"state{parallel.rank}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    numbers, versions = [_numbers(r) for r in reports], [r.version for r in reports]
    (folder / f"rank{parallel.rank}.json").write_text(json.dumps({"numbers": numbers, "versions": versions}))


def _epoch(learner: Learner, groups: list[ScoredGroup], count: int, rank: int) -> list[UpdateReport]:
    """Two updates from groups in waves of `count`, of which each rank has one."""
    for start in range(0, len(groups), count):
        learner.accumulate(groups[start : start + count][rank:][:1])
    reports = [learner.finish_update(), learner.repeat_update()]
    learner.end_epoch()
    return reports


def _numbers(report: UpdateReport) -> list[float]:
    assert report.log_ratio_mean is not None
    return [report.loss, report.gradient_norm, *report.stats.values(), report.log_ratio_mean]


def _replay(
    parallel: Parallel,
    count: int,
    pipeline: Path,
    recorded: Path,
    reports: list[UpdateReport],
    weights: dict[str, Tensor],
) -> None:
    """Another run learns from the recording what the one that made it has learned: the same drawn terms of
    the same trees, once more on all ranks."""
    policy, _, steps = double_policy(pipeline, recorded, OVERRIDES)
    offline = {"old_policy": Offline(), "run_id": "another"}
    learner = make_learner(policy, steps, parallel=parallel, **SETTINGS, **offline)
    learner.publish()
    groups = list(open_recording(recorded).read_epoch(0))
    for found, expected in zip(_epoch(learner, groups, count, parallel.rank), reports, strict=True):
        assert _numbers(found) == pytest.approx(_numbers(expected), rel=1e-9, abs=1e-12)
        assert (found.passes, found.groups) == (expected.passes, expected.groups)
    for name, value in weights_of(policy).items():
        torch.testing.assert_close(value, weights[name], rtol=1e-9, atol=1e-12)


def _sum_gradients(parallel: Parallel) -> None:
    """Types are mixed, and buckets so small that there are several."""
    kinds = (torch.float32, torch.float64, torch.float64, torch.float32)
    parameters = [nn.Parameter(torch.zeros(3, 5, dtype=kind)) for kind in kinds]
    for number, value in enumerate(parameters):
        value.grad = torch.full_like(value, number + 10.0 * parallel.rank)
    with patch("learner.parallel.BUCKET_BYTES", 150):
        parallel.sum_gradients(parameters)
    for number, value in enumerate(parameters):
        assert value.grad is not None
        assert torch.equal(value.grad, torch.full_like(value, 2 * number + 10.0))


def _bad_group_on_one_rank(parallel: Parallel, pipeline: Path, folder: Path) -> None:
    """Both ranks skip the first update; the second is made of the good rank's group alone."""
    policy, reference, steps = double_policy(pipeline, folder, OVERRIDES)
    learner = make_learner(policy, steps, updates=2, parallel=parallel, step_norms_every=0)
    stamp = learner.publish().stamp
    group = sample_double(policy, reference, steps, stamp, "a cat", 2, parallel.rank)
    if parallel.rank == 1:
        group = replace(group, latents=np.full_like(group.latents, np.nan))
    learner.accumulate([scored(group, [0.1, 0.3])])
    first, second = learner.finish_update(), learner.repeat_update()
    assert (first.outcome, second.outcome) == (UpdateOutcome.BAD_GROUP, UpdateOutcome.APPLIED)
    assert len(first.bad_groups) == parallel.rank
    assert (first.groups, second.groups) == (1 - parallel.rank,) * 2
    assert second.gradient_norm > 0
    stamps: list[str] = ["", ""]
    dist.all_gather_object(stamps, learner.publish().stamp.digest)
    assert stamps[0] == stamps[1] != stamp.digest


def _work(rank: int, port: int, pipeline: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    listen_only_at("127.0.0.1")
    store = connect("127.0.0.1", port, TIMEOUT_S)
    parallel = Replicated.join(rank, 2, store, torch.device("cpu"), TIMEOUT_S)
    assert listening() == {"127.0.0.1"}
    _sum_gradients(parallel)
    _bad_group_on_one_rank(parallel, pipeline, folder)
    _train(parallel, 2, pipeline, folder)
    dist.destroy_process_group()


def listening() -> set[str]:
    """The addresses at which this process waits for connections."""
    own = psutil.Process().net_connections("tcp")
    return {one.laddr.ip for one in own if one.status == psutil.CONN_LISTEN}


def _goes_on(pipeline: Path, folder: Path, rank: int) -> Tensors:
    """One rank takes over what rank `rank` saved, and trains another epoch: its weights."""
    policy, reference, steps = double_policy(pipeline, folder, OVERRIDES)
    learner = make_learner(policy, steps, clip_range=0.02)
    state = folder / f"state{rank}"
    files = {str(path.relative_to(state)): path for path in state.rglob("*") if path.is_file()}
    restore_state(learner, {name: path.read_bytes() for name, path in files.items()})
    stamp = learner.publish().stamp
    for position, prompt in enumerate(EPOCHS[0][1]):
        group = sample_double(policy, reference, steps, stamp, prompt, 2, 50 + position)
        learner.accumulate([scored(group, [0.1, 0.3 + 0.1 * position])])
    assert learner.finish_update().version == 5
    return {name: value.detach() for name, value in learner.parameters.items()}


def test_two_ranks_learn_what_one_learns(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    store = listen("127.0.0.1", TIMEOUT_S)
    work = (store.port, tiny_pipeline, tmp_path / "two")
    # Both are forked from one process that has imported what they need, which takes seconds.
    get_context("forkserver").set_forkserver_preload(["tests.learner.support"])
    context = processes.start_processes(_work, args=work, nprocs=2, join=False, start_method="forkserver")
    _train(Single(), 1, tiny_pipeline, tmp_path / "one")
    assert context is not None
    while not context.join(timeout=TIMEOUT_S):
        pass
    alone = safetensors.torch.load_file(tmp_path / "one" / "rank0.safetensors")
    first, second = (safetensors.torch.load_file(tmp_path / "two" / f"rank{r}.safetensors") for r in (0, 1))
    expected = json.loads((tmp_path / "one" / "rank0.json").read_text())
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-8)
    for rank in (0, 1):
        found = json.loads((tmp_path / "two" / f"rank{rank}.json").read_text())
        assert found["versions"] == expected["versions"] == [1, 2, 3, 4]
        for numbers, others in zip(found["numbers"], expected["numbers"], strict=True):
            assert numbers == pytest.approx(others, rel=1e-6, abs=1e-9)
    # One rank goes on with what two have saved, whichever of them did.
    expected_after = _goes_on(tiny_pipeline, tmp_path / "one", 0)
    first_after, second_after = (_goes_on(tiny_pipeline, tmp_path / "two", rank) for rank in (0, 1))
    for name, value in expected_after.items():
        assert torch.equal(first_after[name], second_after[name])
        assert not torch.equal(value, alone[name])
        torch.testing.assert_close(first_after[name], value, rtol=1e-5, atol=1e-7)


def test_ranks_of_two_runs_on_one_machine_meet_at_different_ports() -> None:
    before = listening()
    first, second = (listen("127.0.0.1", TIMEOUT_S) for _ in range(2))
    assert listening() - before <= {"127.0.0.1"}
    assert first.port != second.port
    first.set("who", "first")
    second.set("who", "second")
    assert connect("127.0.0.1", first.port, TIMEOUT_S).get("who") == b"first"


def test_an_address_that_no_interface_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1.*--node-ip-address .*127\.0\.0\.1"):
        listen_only_at("203.0.113.1")
