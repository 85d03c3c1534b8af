"""What a served reward answers, as JSON, for both forms of a request: models, and both directions."""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import RewardError
from common.hidden import hide
from common.trajectory import RewardScores, ScorerStamp
from reward_service.contract.results import Description, Outcome, Reply, RewardFailure, check_scores

_LONGEST_REASON = 1000


DESCRIPTION: TypeAdapter[Description] = TypeAdapter(Description)
"""Reads what GET /v1/describe answers."""


class ScoresBody(BaseModel):
    """A reward of B images: rewards (B,), differences (B, B), residual of the fit to the pairs. Without
    differences they are those of the rewards, as of every pointwise reward."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    rewards: list[float]
    differences: list[list[float]] | None = None
    residual: Annotated[float, Field(ge=0.0)] = 0.0
    stamp: ScorerStamp


class ScoreReply(ScoresBody):
    """The answer to a group. busy_s: seconds of the scorer; shadow: what a shadow version says, or null;
    refused: why the last change of settings was refused, empty where it was not."""

    busy_s: Annotated[float, Field(ge=0.0)] = 0.0
    shadow: ScoresBody | RewardFailure | None = None
    refused: str = ""


def encode_reply(
    scores: RewardScores, busy_s: float, shadow: Outcome | None = None, refused: str = ""
) -> bytes:
    """One JSON object; numbers are written so that reading gives the same float64."""
    told = {"busy_s": busy_s, "shadow": _shadow_object(shadow), "refused": _sendable(refused)}
    reply = {**scores_object(scores), **told}
    return json.dumps(reply, allow_nan=False).encode()


def decode_reply(body: bytes, images: int) -> Reply:
    """The reply to a group of so many images. Raises RewardError where it is not a sound one."""
    try:
        reply = ScoreReply.model_validate_json(body)
    except ValidationError as error:
        raise RewardError(f"It answered what is no score: {first_problem(error)}") from error
    shadow: Outcome | None = None
    if isinstance(reply.shadow, RewardFailure):
        shadow = RewardFailure(hide(reply.shadow.reason)[:_LONGEST_REASON])
    elif reply.shadow is not None:
        shadow = _read_shadow(reply.shadow, images)
    return Reply(_read_scores(reply, images), reply.busy_s, shadow, hide(reply.refused)[:_LONGEST_REASON])


def scores_object(scores: RewardScores) -> dict[str, Any]:
    """Scores as JSON holds them."""
    return {
        "rewards": scores.rewards.tolist(),
        "differences": scores.differences.tolist(),
        "residual": scores.residual,
        "stamp": vars(scores.stamp),
    }


def first_problem(error: ValidationError) -> str:
    """Where and what: the first of an error's problems, without what was sent."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(step) for step in first["loc"])[:100]
    return f"{where}: {first['msg'][:200]}." if where else f"{first['msg'][:200]}."


def _shadow_object(shadow: Outcome | None) -> dict[str, Any] | None:
    if isinstance(shadow, RewardFailure):
        return {"reason": _sendable(shadow.reason)}
    return scores_object(shadow) if isinstance(shadow, RewardScores) else None


def _sendable(reason: str) -> str:
    """Half a character would make the whole reply unreadable, and with it the score."""
    return reason[:_LONGEST_REASON].encode("utf-8", "replace").decode("utf-8")


def _read_shadow(shadow: ScoresBody, images: int) -> Outcome:
    """An unsound answer is a failure of the shadow, and harms nothing."""
    try:
        return _read_scores(shadow, images)
    except RewardError as error:
        return RewardFailure(f"The shadow's answer is not sound. {error}")


def _read_scores(body: ScoresBody, images: int) -> RewardScores:
    rewards = np.array(body.rewards, dtype=np.float64)
    if body.differences is None:
        differences = rewards[:, None] - rewards[None, :]
    else:
        rows = {len(row) for row in body.differences}
        if len(rows) > 1:
            raise RewardError(f"Its differences have rows of several lengths: {sorted(rows)[:5]}.")
        differences = np.array(body.differences, dtype=np.float64)
    return check_scores(RewardScores(rewards, differences, body.residual, body.stamp), images)
