"""Signs that a policy learns the reward's mistakes: a gold reward falls while the trained one stays up."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from driver.report.evaluation import TOTAL, Evaluation
from driver.report.intervals import Interval, compare, format_interval


def over_optimisation(evaluations: Sequence[Evaluation], golds: Collection[str]) -> str | None:
    """What the last evaluation says against the one of the best gold score so far, in words; None where it
    raises no alarm.

    evaluations: at least one, oldest first. An alarm is raised where, on unseen prompts, a gold score has
    clearly fallen since its best evaluation, while the trained sum stays up: on unseen prompts or on those
    that it is trained on, it is clearly above its beginning and has not clearly fallen with gold. It need not
    rise any more, and where the policy overfits it rises on the trained prompts alone. The rewards of
    judges that compare a prompt's images have no level that could rise: there gold alone decides. Clearly:
    the paired 95 % interval over prompts excludes 0.
    """
    *earlier, last = evaluations
    for gold in golds:
        means = [
            (float(unseen.scores[gold].mean()), one)
            for one in earlier
            if (unseen := one.of("unseen")) and gold in unseen.scores
        ]
        if not means:
            continue
        best = max(means, key=lambda pair: pair[0])[1]
        lost = _change((best, last), "unseen", gold)
        if lost is None or not _is_below(lost):
            continue
        fallen = (
            f"since epoch {best.epoch} {gold} on unseen prompts has changed by "
            f"{format_interval(lost, 4, '+')}"
        )
        if not any(one.has_level(TOTAL) for evaluation in evaluations for one in evaluation.sets):
            return fallen
        for prompts in ("unseen", "seen"):
            gained, meanwhile = _change(evaluations, prompts, TOTAL), _change((best, last), prompts, TOTAL)
            if gained and meanwhile and _is_above(gained) and not _is_below(meanwhile):
                return (
                    f"{fallen} and the trained reward on {prompts} ones by "
                    f"{format_interval(meanwhile, 4, '+')}"
                )
    return None


def _change(evaluations: Sequence[Evaluation], prompts: str, score: str) -> Interval | None:
    changes = (one for one in compare(evaluations) if (one.set_name, one.score) == (prompts, score))
    return next((change.difference for change in changes), None)


def _is_above(change: Interval) -> bool:
    return change.excludes_zero and change.mean > 0


def _is_below(change: Interval) -> bool:
    return change.excludes_zero and change.mean < 0
