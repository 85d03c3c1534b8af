"""What an epoch waited for: its critical path, and which pool to grow. Pure.

From the end of the epoch backwards: the last update began when the last gradient was there, that one when
its group was scored or the gradient before it was done, that group was scored when it was sampled and those
before it were scored, and it was sampled once its actor was through with the one before. So each moment has
one role that all waited for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from driver.report.timeline_spans import ACTORS, LEARNER, NO_GROUP, REWARDS, Span, Timeline

OTHER = "other"
SLACK_S = 0.02
"""By so much clocks of machines may differ without changing what is taken to follow what."""

SATURATED = 0.7
"""A pool that worked for this share of the epoch would work for all of it if the others were faster."""


@dataclass(frozen=True)
class Piece:
    """A part of the epoch and the role that all waited for. who: the reward's name; "" for other roles."""

    role: str
    who: str
    begin_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end_s - self.begin_s


class _Ended:
    """Spans by when they ended."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = sorted(spans, key=lambda span: span.end_s)
        self._ends = [span.end_s for span in self._spans]

    def last(self) -> list[Span]:
        """The one that ended last; none where there are none."""
        return self._spans[-1:]

    def before(self, span: Span, at_s: float) -> list[Span]:
        """The last that had ended at a time and had begun before `span`; none where there was none."""
        index = bisect_right(self._ends, at_s + SLACK_S) - 1
        while index >= 0 and self._spans[index].begin_s >= span.begin_s:
            index -= 1
        return self._spans[index : index + 1] if index >= 0 else []


class _Walk:
    """Goes back through one epoch."""

    def __init__(self, timeline: Timeline) -> None:
        self._begin_s = timeline.begin_s
        self._at = timeline.end_s
        self._pieces: list[Piece] = []
        learner, samples = timeline.of(LEARNER), timeline.of(ACTORS)
        self._learner = _Ended(learner)
        self._of_rank = _by_process(learner)
        self._of_actor = _by_process(samples)
        self._sample_of = {span.group: span for span in samples if span.group != NO_GROUP}
        asks = timeline.of(REWARDS)
        self._of_reward = _by_process(asks)
        self._groups, self._last_answers = _last_answers(asks)

    def pieces(self) -> tuple[Piece, ...]:
        """The whole epoch, from its beginning."""
        steps = {LEARNER: self._before_learning, REWARDS: self._before_scoring, ACTORS: self._before_sampling}
        found = self._learner.last()
        while found and self._at > self._begin_s:
            (span,) = found
            self._back(OTHER, "", span.end_s)
            found = steps[span.role](span)
        self._back(OTHER, "", self._begin_s)
        return tuple(reversed(self._pieces))

    def _back(self, role: str, who: str, to_s: float) -> None:
        to_s = max(to_s, self._begin_s)
        if to_s < self._at:
            self._pieces.append(Piece(role, who, to_s, self._at))
            self._at = to_s

    def _before_learning(self, span: Span) -> list[Span]:
        self._back(LEARNER, "", span.begin_s)
        # An update waits for all ranks, a gradient for the one before it on its own.
        own = self._learner if span.group == NO_GROUP else self._of_rank[span.process]
        asked = bisect_right(self._groups, span.group)
        answer = [self._last_answers[asked - 1]] if span.group != NO_GROUP and asked else []
        found = [
            other for other in (*own.before(span, span.begin_s), *answer) if other.begin_s < span.begin_s
        ]
        return sorted(found, key=lambda other: other.end_s)[-1:]

    def _before_scoring(self, span: Span) -> list[Span]:
        sample = [self._sample_of[span.group]] if span.group in self._sample_of else []
        # The time from its sampling to its sending counts too: it waited for room at the rewards.
        came_s = sample[0].end_s if sample else span.begin_s
        queued = [
            other
            for other in self._of_reward[span.process].before(span, span.end_s - span.busy_s)
            if other.end_s > came_s + SLACK_S
        ]
        self._back(REWARDS, span.process, queued[0].end_s if queued else came_s)
        return queued or [other for other in sample if other.begin_s < span.end_s]

    def _before_sampling(self, span: Span) -> list[Span]:
        self._back(ACTORS, "", span.begin_s)
        return self._of_actor[span.process].before(span, span.begin_s)


def _by_process(spans: Sequence[Span]) -> dict[str, _Ended]:
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.process, []).append(span)
    return {process: _Ended(own) for process, own in found.items()}


def _last_answers(asks: Sequence[Span]) -> tuple[list[int], list[Span]]:
    """The groups in order, and for each the answer that came last of those to it and to groups before it.

    Groups go to the learner in order, so a group waits for the answers to those before it, too.
    """
    latest: dict[int, Span] = {}
    for ask in asks:
        if ask.group != NO_GROUP and (ask.group not in latest or ask.end_s > latest[ask.group].end_s):
            latest[ask.group] = ask
    groups = sorted(latest)
    answers: list[Span] = []
    for group in groups:
        answers.append(max([latest[group], *answers[-1:]], key=lambda ask: ask.end_s))
    return groups, answers


def critical_path(timeline: Timeline) -> tuple[Piece, ...]:
    """What the epoch waited for, from its beginning to its end without gaps."""
    return _Walk(timeline).pieces()


def busy_share(timeline: Timeline, role: str, process: str = "") -> float:
    """Share of the epoch in which the role's processes, or that one, had work; mean over processes.

    A reward has work while it has a group.
    """
    processes = [process] if process else timeline.processes(role)
    if not processes or timeline.seconds <= 0:
        return 0.0
    total = sum(
        _covered([span for span in timeline.of(role) if span.process == own], timeline) for own in processes
    )
    return total / (timeline.seconds * len(processes))


def _covered(spans: Sequence[Span], timeline: Timeline) -> float:
    """Seconds of the epoch in which at least one of the spans lasts. spans: by when they began."""
    total, reached = 0.0, timeline.begin_s
    for span in spans:
        end_s = min(span.end_s, timeline.end_s)
        total += max(0.0, end_s - max(span.begin_s, reached))
        reached = max(reached, end_s)
    return total


def waits(path: Sequence[Piece]) -> dict[tuple[str, str], float]:
    """Seconds waited for each role (and reward), most first."""
    found: dict[tuple[str, str], float] = {}
    for piece in path:
        key = piece.role, piece.who
        found[key] = found.get(key, 0.0) + piece.seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def advice(timeline: Timeline) -> str:
    """Where the bottleneck is, and which pool to grow, in a sentence or two."""
    found = waits(critical_path(timeline))
    if not found:
        return "Nothing is known of this epoch."
    (role, who), seconds = next(iter(found.items()))
    share = f"{seconds:.3g} of {timeline.seconds:.3g} s ({seconds / timeline.seconds:.0%})"
    return _ADVICE[role](timeline, who, share, f"{seconds / 2:.2g} s")


def _grow_actors(timeline: Timeline, who: str, share: str, gain: str) -> str:
    actors, busy = len(timeline.processes(ACTORS)), busy_share(timeline, ACTORS)
    prompts = len({span.group for span in timeline.of(ACTORS)} - {NO_GROUP})
    text = (
        f"The actors set the pace: the epoch waited for them for {share}, and they worked {busy:.0%} of it."
    )
    if prompts <= actors:
        return (
            f"{text} Each prompt has an actor of its own already, so more would idle: use faster ones, "
            "or fewer images a prompt (sampling.images_per_prompt)."
        )
    return f"{text} Grow the actors (actors.count): twice as many save up to {gain} an epoch."


def _grow_reward(timeline: Timeline, who: str, share: str, gain: str) -> str:
    busy = busy_share(timeline, REWARDS, who)
    text = (
        f"The reward {who!r} sets the pace: the epoch waited for it for {share}, and it had work {busy:.0%} "
        "of the epoch."
    )
    if busy < SATURATED:
        return (
            f"{text} It is slow to answer rather than overloaded: a faster scorer (a GPU, less batch_wait_s) "
            "helps more than replicas do."
        )
    return (
        f"{text} Grow it (reward_service.replicas, or its own deployment): twice as many replicas save up to "
        f"{gain} an epoch."
    )


def _grow_learner(timeline: Timeline, who: str, share: str, gain: str) -> str:
    text = f"The learner sets the pace: the epoch waited for it for {share}."
    idle = 1.0 - busy_share(timeline, ACTORS)
    overlap = (
        f" The actors idled {idle:.0%} of it: data.max_staleness=1 lets them sample meanwhile."
        if idle > 0.3
        else ""
    )
    return (
        f"{text} Grow it (learner.workers, or a larger learner.micro_batch_size): twice as many ranks save "
        f"up to {gain} an epoch.{overlap}"
    )


def _grow_nothing(timeline: Timeline, who: str, share: str, gain: str) -> str:
    return (
        f"No pool sets the pace: {share} went by between them (starting tasks, moving data, publishing). "
        "More prompts an epoch (sampling.prompts_per_epoch) make that share smaller; more processes do not."
    )


_ADVICE = {ACTORS: _grow_actors, REWARDS: _grow_reward, LEARNER: _grow_learner, OTHER: _grow_nothing}
