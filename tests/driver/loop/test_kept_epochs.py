"""Which checkpoints stay, against a slow reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hypothesis import given
from hypothesis import strategies as st

from driver.run.checkpoint_manager import kept_epochs


def slow_kept(
    written: Collection[int], last: int, keep: int, keep_best: int, golds: Mapping[int, float], sound: int
) -> set[int]:
    """By removing one after the other what no rule asks for."""
    kept = set()
    for epoch in written:
        newer = [other for other in written if epoch < other <= last]
        scored = [other for other in written if other <= last and other in golds]
        better = [other for other in scored if (-golds[other], other) < (-golds.get(epoch, 0.0), epoch)]
        is_sound = epoch <= sound and not any(other <= sound for other in newer)
        is_best = epoch in scored and len(better) < keep_best
        if epoch > last or len(newer) <= keep or is_best or is_sound:
            kept.add(epoch)
    return kept


@given(
    st.sets(st.integers(1, 12), min_size=1),
    st.integers(0, 11),
    st.integers(0, 4),
    st.integers(0, 4),
    st.dictionaries(st.integers(1, 12), st.sampled_from([0.25, 0.5, 0.75])),
    st.integers(0, 12),
)
def test_the_last_some_before_it_and_the_best_stay(
    written: set[int], place: int, keep: int, keep_best: int, golds: dict[int, float], sound: int
) -> None:
    last = sorted(written)[place % len(written)]
    kept = kept_epochs(written, last, keep, keep_best, golds, sound)
    assert kept == slow_kept(written, last, keep, keep_best, golds, sound)
    assert last in kept
