"""Every cell of every study is a configuration, and its digest is of what decides its results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from studies.catalogue import STUDIES, Study


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_cells_are_configurations_that_differ(study: Study) -> None:
    configs = {cell: study.config(cell, 3) for cell in study.cells}
    assert {config.run.seed for config in configs.values()} == {3}
    assert len({study.digest(cell) for cell in configs if cell not in study.on_ray}) == len(
        configs.keys() - study.on_ray
    )


def test_a_digest_changes_with_the_settings() -> None:
    study = STUDIES["kl"]
    other = replace(study, cells={"kl_1": {**study.cells["kl_1"], "sampling.steps": 5}})
    assert other.digest("kl_1") != study.digest("kl_1")
