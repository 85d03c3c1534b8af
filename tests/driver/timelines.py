"""Timelines that tests make up."""

from __future__ import annotations

from driver.report.timeline_spans import ACTORS, LEARNER, NO_GROUP, REWARDS, Span, Timeline


def sample(process: str, begin: float, end: float, group: int) -> Span:
    return Span(ACTORS, process, "sample", begin, end, group, end - begin)


def score(reward: str, begin: float, end: float, group: int, busy: float) -> Span:
    return Span(REWARDS, reward, "score", begin, end, group, busy)


def gradient(process: str, begin: float, end: float, group: int) -> Span:
    return Span(LEARNER, process, "gradient", begin, end, group, end - begin)


def update(process: str, begin: float, end: float) -> Span:
    return Span(LEARNER, process, "update 1", begin, end, NO_GROUP, end - begin)


def pipeline(
    groups: int, actors: int, sample_s: float, score_s: float, learn_s: float, begin_s: float = 100.0
) -> Timeline:
    """An epoch as the driver makes one: groups in order over actors, one reward that scores one group at a
    time, one rank, an update of 0.5 s, and 0.25 s until the weights are published."""
    spans = []
    actor_free = [begin_s] * actors
    reward_free = rank_free = begin_s
    for group in range(groups):
        actor = min(range(actors), key=lambda seat: (actor_free[seat], seat))
        sampled = actor_free[actor] + sample_s
        spans.append(sample(f"actor {actor}", actor_free[actor], sampled, group))
        actor_free[actor] = sampled
        reward_free = max(reward_free, sampled) + score_s
        spans.append(score("jpeg", sampled, reward_free, group, score_s))
        start = max(rank_free, reward_free)
        rank_free = start + learn_s
        spans.append(gradient("rank 0", start, rank_free, group))
    spans.append(update("rank 0", rank_free, rank_free + 0.5))
    return Timeline(3, begin_s, rank_free + 0.75, tuple(spans))
