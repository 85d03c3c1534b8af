"""The cluster files as Ray's own launcher reads them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
AWS, GCP, LOCAL = ROOT / "cluster.yaml", ROOT / "deploy" / "gcp.yaml", ROOT / "deploy" / "local.yaml"
FILES = (AWS, GCP, LOCAL)
PLACEMENTS = ("actors", "learner", "reward_service")


def read(path: Path) -> dict[str, Any]:
    """The file as it is written."""
    tree: dict[str, Any] = yaml.safe_load(path.read_text())
    return tree


def prepared(path: Path) -> dict[str, Any]:
    """With Ray's defaults, as `ray up` prepares it. Raises where Ray's schema refuses it."""
    tree: dict[str, Any] = prepare_config(copy.deepcopy(read(path)))
    validate_config(tree)
    return tree


def leaves(tree: Any) -> list[Any]:
    """All values of a tree that are no mapping and no list; keys too."""
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in (key, *leaves(value))]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]
