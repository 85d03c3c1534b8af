"""Digests of a model folder's parts: each changes with what is loaded of its part, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.model.digests import CACHE_FILE, digest_parts

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _json(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(
            json.dumps({**json.loads(path.read_text()), **values}, indent=7), encoding="utf-8-sig"
        )

    return change


def _byte(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    return change


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (_byte(f"unet/{WEIGHTS}"), {"unet"}),
        (_byte(f"vae/{WEIGHTS}"), {"vae"}),
        (_byte("text_encoder/model.safetensors"), {"text_encoder"}),
        (_byte("tokenizer/tokenizer.json"), {"tokenizer"}),
        (_json("tokenizer/tokenizer_config.json", model_max_length=5), {"tokenizer"}),
        (_json("unet/config.json", norm_eps=0.5), {"unet"}),
        (_json("scheduler/scheduler_config.json", beta_end=0.5), {"scheduler"}),
        (_json("model_index.json", force_zeros_for_empty_prompt=False), {"model_index"}),
        (_json("model_index.json", feature_extractor=["transformers", "X"]), set()),
        (_json("unet/config.json", _diffusers_version="1"), set()),
        (
            lambda folder: (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"x"),
            set(),
        ),
    ],
)
def test_a_part_has_the_digest_of_what_is_loaded_of_it(
    tiny_pipeline: Path, tmp_path: Path, change: Callable[[Path], object], changed: set[str]
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    before = digest_parts(folder)
    assert set(before) == {"model_index", "unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert before == digest_parts(tiny_pipeline)
    change(folder)
    after = digest_parts(folder)
    assert {part for part in before if after[part] != before[part]} == changed


def test_the_variant_decides_and_what_is_not_there_whole_is_left_out(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"x")
    plain, half = digest_parts(folder), digest_parts(folder, "fp16")
    assert {part for part in plain if half[part] != plain[part]} == {"unet"}
    (folder / "unet" / WEIGHTS).unlink()
    assert set(plain) - set(digest_parts(folder)) == {"unet"}


def test_files_are_read_again_only_where_they_changed(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder, cache = Path(shutil.copytree(tiny_pipeline, tmp_path / "model")), tmp_path / "cache"
    before = digest_parts(folder, cache=cache)
    path = folder / "unet" / WEIGHTS
    status = path.stat()
    _byte(f"unet/{WEIGHTS}")(folder)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_parts(folder, cache=cache) == before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert digest_parts(folder, cache=cache)["unet"] != before["unet"]
    (cache / CACHE_FILE).write_text("{")
    assert digest_parts(folder, cache=cache) == digest_parts(folder)


def test_a_cache_that_cannot_be_written_costs_time_alone(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert digest_parts(tiny_pipeline, cache=tmp_path / "file") == digest_parts(tiny_pipeline)
