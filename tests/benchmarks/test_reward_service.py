from __future__ import annotations

import os

import numpy as np
import pytest
from ray.serve.schema import ServeDeploySchema

from benchmarks import reward_autoscale, reward_deployed, reward_soak, reward_swap, reward_throughput
from benchmarks.reward_clients import pictures
from benchmarks.reward_cluster import ServedApp, file_of
from benchmarks.reward_soak import MOST_GROWTH, Memory, own_bytes, repeated
from benchmarks.reward_throughput import batches_of
from reward_service.contract.settings import read_settings
from reward_service.serve import AppArguments, build


def test_the_file_that_is_deployed_is_a_serve_file_of_our_applications() -> None:
    apps = [
        ServedApp("clip", {"scorer": "jpeg_compressibility"}, replicas=2, http=True, code_version="2"),
        ServedApp("jpeg", {"scorer": "jpeg_compressibility"}),
    ]
    read = ServeDeploySchema.model_validate(file_of(apps, 8123))
    clip, jpeg = read.applications
    assert (clip.route_prefix, jpeg.route_prefix) == ("/clip", None)
    assert AppArguments.model_validate(clip.args).code_version == "2"
    (reward,) = clip.deployments
    assert reward.num_replicas == 2
    assert read_settings(reward.user_config or {}, "test").scorer == "jpeg_compressibility"
    assert read.proxy_location == "EveryNode"
    assert ServeDeploySchema.model_validate(file_of(apps[1:], 8123)).proxy_location == "Disabled"


def test_the_autoscaler_s_settings_reach_serve() -> None:
    app = ServedApp("clip", {"scorer": "clip"}, autoscaling={"min_replicas": 1, "max_replicas": 3})
    (read,) = ServeDeploySchema.model_validate(file_of([app], 8123)).applications
    (reward,) = read.deployments
    assert reward.num_replicas == "auto"
    assert reward.autoscaling_config is not None
    assert reward.autoscaling_config["max_replicas"] == 3
    built = build(dict(read.args))._bound_deployment.options(
        num_replicas=reward.num_replicas, autoscaling_config=reward.autoscaling_config
    )
    scaled = built._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas) == (1, 3)


def test_growth_is_of_the_last_quarter_over_the_first() -> None:
    assert Memory((100, 100, 100, 900, 100, 100, 104, 104)).growth == pytest.approx(0.04)
    steady = Memory(tuple(range(1000, 1100, 5)))
    assert 0.0 < steady.growth < 0.1
    assert Memory((100, 110)).growth > MOST_GROWTH


def test_own_memory_is_seen_to_grow() -> None:
    before = own_bytes(os.getpid())
    block = np.ones(32 << 20, dtype=np.uint8)
    assert own_bytes(os.getpid()) - before > 24 << 20
    assert block.all()


def test_groups_repeat_and_batches_hold_every_picture_once() -> None:
    groups = [(prompt, pictures(prompt, 2, 8)) for prompt in ("a", "b", "c")]
    assert [prompt for prompt, _ in repeated(groups, 5)] == ["a", "b", "c", "a", "b"]
    batches = list(batches_of(groups, 2))
    assert [prompts for prompts, _ in batches] == [["a", "a", "b", "b"], ["c", "c"]]
    np.testing.assert_array_equal(batches[0][1], np.concatenate([groups[0][1], groups[1][1]]))


@pytest.mark.parametrize(
    "command", [reward_swap, reward_throughput, reward_soak, reward_deployed, reward_autoscale]
)
def test_every_command_says_what_it_does(command, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert "--out" in capsys.readouterr().out
