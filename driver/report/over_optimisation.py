"""Signs that a policy learns the reward's mistakes: the trained reward rises while a gold reward falls."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from driver.report.evaluation import TOTAL, Evaluation
from driver.report.intervals import compare, format_interval


def over_optimisation(evaluations: Sequence[Evaluation], golds: Collection[str]) -> str | None:
    """What the last evaluation says against the one of the best gold score so far, in words; None where it
    raises no alarm.

    evaluations: at least one, oldest first. An alarm is raised where, on unseen prompts, the trained sum has
    clearly risen since then and that gold score has clearly fallen: paired 95 % intervals over prompts that
    exclude 0.
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
        since = {
            change.score: change.difference
            for change in compare((best, last))
            if change.set_name == "unseen" and change.difference is not None and change.is_clear
        }
        risen, fallen = since.get(TOTAL), since.get(gold)
        if risen and fallen and risen.mean > 0 > fallen.mean:
            return (
                f"since epoch {best.epoch} the trained reward on unseen prompts has changed by "
                f"{format_interval(risen, 4, '+')} and {gold} by {format_interval(fallen, 4, '+')}"
            )
    return None
