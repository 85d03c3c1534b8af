"""The tables of docs/scaling.md.

python -m benchmarks.sizing_tables          # prints them
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from benchmarks.scale_shapes import ShapeCost
from benchmarks.sizing import (
    A100,
    ASSUMED,
    CLUSTERS,
    DRIVER_S,
    H100,
    MODELS,
    PAPER,
    PAPER_PROMPTS,
    Cluster,
    actor_bytes,
    group_bytes,
    learner_bytes,
    learning_seconds,
    picture_bytes,
    sampling_seconds,
    trajectory_bytes,
    weight_bytes,
)


def policies() -> Iterable[tuple[str, ShapeCost, bool]]:
    """Name, model and whether everything is trained."""
    for name, model in MODELS.items():
        yield f"{name}, LoRA", model, False
        yield f"{name}, full", model, True


def objects_table() -> str:
    """What travels, and what stays on the GPUs."""
    head = (
        "model",
        "trajectories of a group",
        "pictures of a group",
        "64 groups",
        "weights, LoRA",
        "weights, full",
        "rank's GPU, LoRA / full",
        "actor's GPU, LoRA / full",
    )
    rows = [
        (
            name,
            _size(trajectory_bytes(model, PAPER)),
            _size(picture_bytes(model, PAPER)),
            _size(PAPER_PROMPTS * group_bytes(model, PAPER)),
            _size(weight_bytes(model, full=False)),
            _size(weight_bytes(model, full=True)),
            f"{_size(learner_bytes(model, full=False))} / {_size(learner_bytes(model, full=True))}",
            f"{_size(actor_bytes(model, full=False))} / {_size(actor_bytes(model, full=True))}",
        )
        for name, model in MODELS.items()
    ]
    return _table(head, rows)


def seconds_table() -> str:
    """A group's FLOP, and the seconds they would take."""
    head = (
        "model",
        "sampling",
        "learning, LoRA / full",
        *(f"{gpu.name}: sampling, learning LoRA / full" for gpu in (A100, H100)),
    )
    rows = []
    for name, model in MODELS.items():
        work = [
            sampling_seconds(model, PAPER, A100),
            learning_seconds(model, PAPER, A100, full=False),
            learning_seconds(model, PAPER, A100, full=True),
        ]
        flop = [seconds * A100.peak * ASSUMED.used for seconds in work]
        times = [
            f"{work[0] * A100.peak / gpu.peak:.1f} s, {work[1] * A100.peak / gpu.peak:.1f} / "
            f"{work[2] * A100.peak / gpu.peak:.1f} s"
            for gpu in (A100, H100)
        ]
        rows.append((name, _flop(flop[0]), f"{_flop(flop[1])} / {_flop(flop[2])}", *times))
    return _table(head, rows)


def clusters_table() -> str:
    """H100 clusters, and how busy one driver is with each."""
    head = (
        "policy",
        "GPUs",
        "actors / ranks / reward replicas",
        "N",
        "epoch",
        "of it exchange",
        "epochs/h",
        "epochs/h at N = 64",
        "groups/s",
        "driver busy",
        "object store a node",
        "network a node",
    )
    rows = []
    for name, model, full in policies():
        for gpus in CLUSTERS:
            one = Cluster.divide(model, PAPER, H100, full, gpus)
            epoch = one.epoch_s(one.groups)
            rows.append(
                (
                    name,
                    str(gpus),
                    f"{one.actors} / {one.ranks} / {one.replicas}",
                    f"{one.groups:,}",
                    f"{epoch:.0f} s",
                    f"{one.exchange_s:.1f} s",
                    f"{3600 / epoch:.0f}",
                    f"{3600 / one.epoch_s(PAPER_PROMPTS):.0f}",
                    f"{one.groups_per_s:.3g}",
                    f"{one.groups_per_s * DRIVER_S:.1%}",
                    _size(one.store_bytes),
                    f"{_size(one.network_bytes)}/s",
                )
            )
    return _table(head, rows)


def driver_table() -> str:
    """How many actors keep one driver's thread fully busy."""
    head = ("model", *(f"actors on {gpu.name}" for gpu in (A100, H100)))
    rows = [
        (name, *(f"{sampling_seconds(model, PAPER, gpu) / DRIVER_S:,.0f}" for gpu in (A100, H100)))
        for name, model in MODELS.items()
    ]
    return _table(head, rows)


def tables() -> tuple[str, ...]:
    """All of them: objects, seconds, clusters, and what a driver feeds."""
    return objects_table(), seconds_table(), clusters_table(), driver_table()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size(count: float) -> str:
    """`26.7 MB`, `1.2 GB`: decimal."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:.3g} {name}"


def _flop(count: float) -> str:
    return f"{count / 1e12:,.0f} TFLOP"


if __name__ == "__main__":
    print("\n\n".join(tables()))
    sys.exit(0)
