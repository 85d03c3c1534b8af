"""Calls of the learner's ranks, and what their failures mean to the run."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from common.cluster.process_failures import DEATHS
from driver.loop.rollouts import Rollouts
from learner.group import LearnerGroup


class LearnerLost(Exception):  # noqa: N818 - an event that the driver mends
    """A rank has died, or could not start. error: what Ray said of it, or of what went in its wake."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(what)
        self.error = error


class GroupLost(Exception):  # noqa: N818 - an event that the driver mends
    """What a call was given is lost with the node that held it."""


class RewindNeeded(Exception):  # noqa: N818 - an event, mended by the loop
    """The learner died and cannot learn the same again: epochs since the last checkpoint come again."""


class LearnerCalls:
    """Waits for the ranks, by way of Rollouts, so that groups move on meanwhile. limit_s: of each wait."""

    def __init__(self, group: LearnerGroup, rollouts: Rollouts, limit_s: float) -> None:
        self._group = group
        self._rollouts = rollouts
        self._limit_s = limit_s

    def wait(self, references: list[ray.ObjectRef], what: str) -> list[Any]:
        """The values of one call. Raises LearnerLost, GroupLost, StuckError, or the learner's own error."""
        try:
            return self._rollouts.wait(references, what, self._limit_s)
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                raise GroupLost(first_line(error.cause)) from error
            # Ranks whose peer died fail in its wake, often before its death is known.
            if self._group.lost_a_rank():
                raise LearnerLost(f"a rank died ({first_line(error)})", error) from error
            raise
        except DEATHS as error:
            # Also where a rank could not start: all have started before, and one that fails while it meets
            # the others may do so because one of them has just died.
            raise LearnerLost(first_line(error), error) from error
        except ObjectLostError as error:
            raise GroupLost(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """What it says, without the paragraphs that Ray adds."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
