"""Where a process of ours runs on Ray: plain options, so that this module needs no Ray."""

from __future__ import annotations

from typing import Any

from common.config.services import PlacementSection


def process_options(placement: PlacementSection) -> dict[str, Any]:
    """Ray options of a process that computes: resources, labels, no more OpenMP threads than stated.

    One without a GPU sees none: Ray lets it see all of them, and it would take the first, which is another's.
    """
    threads = str(placement.threads)
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if not placement.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return {
        "num_cpus": placement.cpus,
        "num_gpus": placement.gpus,
        "label_selector": dict(placement.labels),
        "runtime_env": {"env_vars": variables},
    }
