"""What a registered policy says of how it was made."""

from __future__ import annotations

from pathlib import Path

from common.config.load import config_to_yaml
from driver.finish import policy_tags
from driver.run.reward_versions import VersionRecord
from tests.tiny_config import make_config


def test_tags_say_what_made_a_policy(tmp_path: Path) -> None:
    config = make_config(Path("no/model"), tmp_path)
    versions = [
        VersionRecord(0, 0, "clip", 1, "1", "abcdef0123456789"),
        VersionRecord(7, 2, "clip", 2, "2", ""),
    ]
    assert policy_tags(config, versions) == {
        "run": config.run.name,
        "epochs": str(config.run.epochs),
        "config": config_to_yaml(config),
        "reward/clip": "1 (abcdef012345) from epoch 0; 2 from epoch 7",
    }
