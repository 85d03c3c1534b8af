"""What is remembered of rewards is bounded, and comes back from JSON to the bit."""

from __future__ import annotations

import json
from collections import deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common.records import parse_record
from learner.objectives.history import RewardHistory

rewards = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5)
groups = st.lists(st.tuples(st.sampled_from(["a cat", "the sea", "é", "a dog"]), rewards), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(groups, max_size=4), st.integers(1, 6), st.integers(1, 4))
def test_it_keeps_the_last_rewards_of_the_prompts_seen_last(
    epochs: list[list[tuple[str, list[float]]]], kept: int, prompts: int
) -> None:
    history = RewardHistory()
    buffers: dict[str, deque[float]] = {}
    for epoch in epochs:
        scores = [(prompt, np.array(values)) for prompt, values in epoch]
        saved = parse_record(dict[str, tuple[float, ...]], json.dumps(dict(history.rewards)).encode())
        assert saved == history.rewards
        history = history.with_rewards(scores, kept, prompts)
        for prompt, values in epoch:
            buffer = buffers.pop(prompt, deque(maxlen=kept))
            buffer.extend(values)
            buffers[prompt] = buffer
        for oldest in list(buffers)[: max(0, len(buffers) - prompts)]:
            del buffers[oldest]
    assert [(prompt, list(values)) for prompt, values in history.rewards.items()] == [
        (prompt, list(buffer)) for prompt, buffer in buffers.items()
    ]
