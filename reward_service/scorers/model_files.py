"""Where a scorer's model comes from, a folder or a hub repository, and how its tensors are read safely."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError  # torch.load raises it for what it refuses; nothing is unpickled here
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from common.errors import RewardError
from common.places import why_no_folder

_HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([\w+.-]+)")

Tensors = Mapping[str, torch.Tensor]


def device() -> str:
    """The GPU where this process has one, otherwise the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class ModelSource:
    """The files of a model, in a local folder or in a hub repository that is fetched at first use.

    option: names the option in errors, e.g. "clip option path". what: what it is, e.g. "CLIP model".
    path: folder or hub id. revision: hub revision; ignored for a folder.
    patterns: the files that matter. fallback: further patterns, used where no file fits the last of
        `patterns`.
    """

    def __init__(
        self, option: str, what: str, path: str, revision: str, patterns: Sequence[str], fallback: str = ""
    ) -> None:
        self._option = option
        self._what = what
        self._path = path
        self._revision = revision
        self._patterns = list(patterns)
        self.fallback = fallback

    @property
    def is_local(self) -> bool:
        """Whether the path is a folder here."""
        return Path(self._path).is_dir()

    def check(self) -> None:
        """Raises RewardError where the path is neither a folder nor a possible hub id. Fetches nothing."""
        if reason := why_no_folder(self._path):
            raise RewardError(f"{self._option} is {self._path!r}: {reason}")

    @cached_property
    def folder(self) -> Path:
        """The folder, fetched where it is on the hub. Raises RewardError where that fails."""
        if self.is_local:
            return Path(self._path)
        fetched = self._fetch(self._patterns)
        if self.fallback and not any(fetched.glob(self._patterns[-1])):
            fetched = self._fetch([self.fallback])
        return fetched

    def files(self) -> list[Path]:
        """The files that decide the scores, fetched where they are on the hub."""
        found = {file for pattern in self._patterns for file in self.folder.glob(pattern)}
        if self.fallback and not any(self.folder.glob(self._patterns[-1])):
            found |= set(self.folder.glob(self.fallback))
        return sorted(found)

    def _fetch(self, patterns: list[str]) -> Path:
        try:
            fetched = huggingface_hub.snapshot_download(
                self._path, revision=self._revision, allow_patterns=patterns
            )
        except (OSError, ValueError) as error:
            raise RewardError(
                f"Cannot get {self._what} {self._path!r} (revision {self._revision!r}) from the hub: "
                f"{error}. Give a local folder, or check the name, the revision and the network."
            ) from error
        return Path(fetched)


class FileSource:
    """One file: local, or owner/repository/file on the hub, fetched at first use."""

    def __init__(self, option: str, path: str, revision: str) -> None:
        self._option = option
        self._path = path
        self._revision = revision

    def check(self) -> None:
        """Raises RewardError where the path is neither a file nor a possible file on the hub."""
        if not Path(self._path).is_file() and (
            not _HUB_FILE.fullmatch(self._path) or Path(self._path).parent.is_dir()
        ):
            raise RewardError(
                f"{self._option} is {self._path!r}, which is neither a file nor owner/repository/file "
                "on the hub such as trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth."
            )

    @cached_property
    def file(self) -> Path:
        """The file, fetched where it is on the hub. Raises RewardError where that fails."""
        self.check()
        match = _HUB_FILE.fullmatch(self._path)
        if Path(self._path).is_file() or match is None:
            return Path(self._path)
        repository, name = match.groups()
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=self._revision))
        except (OSError, ValueError) as error:
            raise RewardError(
                f"Cannot get {name!r} of {repository!r} (revision {self._revision!r}) from the hub: {error}. "
                "Give a local file, or check the name, the revision and the network."
            ) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises RewardError where the file is missing or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RewardError(f"{file} is no model configuration: {error!r}.") from error
    if not isinstance(content, dict):
        raise RewardError(f"{file} is no model configuration: it holds a {type(content).__name__}.")
    return content


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, on the CPU, by name; those under "state_dict" where it has such an entry.

    A .safetensors file holds nothing else. Anything else is read by torch.load(weights_only=True), whose
    reader builds tensors and plain containers only and refuses every other object.
    Raises RewardError where the file cannot be read so, or holds something besides tensors.
    """
    try:
        if file.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise RewardError(
            f"Cannot read the tensors of {file}: {_first_line(error)} Files that hold other objects than "
            "tensors are refused; keep the tensors alone (safetensors.torch.save_file) on a machine that may "
            "open the file."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content:
        raise RewardError(f"{file} holds no tensors by name, but a {type(content).__name__}.")
    strange = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise RewardError(f"{file} holds entries that are no tensors, e.g. {strange[:3]}.")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def build_model(model_class: Any, config: Any, tensors: Tensors, where: Path) -> Any:
    """A transformers model in float32 with these tensors, for inference, on the GPU where there is one.

    Raises RewardError where a tensor is missing or of another shape than the configuration says.
    """
    transformers_logging.disable_progress_bar()
    try:
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RewardError(
            f"The tensors of {where} do not fit a {model_class.__name__} of this configuration: {error}"
        ) from error
    return ready(model, report, where)


def ready(model: Any, report: Mapping[str, Any], where: Path) -> Any:
    """The model for inference, on the GPU where there is one. Raises RewardError for missing weights."""
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise RewardError(
            f"The weights in {where} lack {len(missing)} tensors of a {type(model).__name__}, "
            f"e.g. {missing[:3]}."
        )
    return model.eval().requires_grad_(False).to(device())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no text'}"
