"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers", "ray")


@dataclass(frozen=True)
class Machine:
    """cores: those this process may use. threads: torch's. load: runnable processes, mean of a minute."""

    processor: str
    cores: int
    threads: int
    accelerator: str
    python: str
    packages: dict[str, str]
    load: float

    @staticmethod
    def here() -> Machine:
        """This machine, now."""
        return Machine(
            processor=_processor(),
            cores=usable_cores(),
            threads=torch.get_num_threads(),
            accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            python=platform.python_version(),
            packages={name: version(name) for name in PACKAGES},
            load=load(),
        )

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """In one line."""
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        return (
            f"{self.processor}, {self.cores} cores; accelerator: {self.accelerator}; torch threads of this "
            f"process: {self.threads}; Python {self.python}, {packages}; load {self.load} when it began"
        )


def load() -> float:
    """Runnable processes of the whole machine, mean over the last minute."""
    return round(os.getloadavg()[0], 1)


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
