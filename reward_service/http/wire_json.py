"""The protocol's JSON: for people and shells. Pictures are base64 PNG or JPEG files."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.results import NoShadow, Outcome, Reply, RewardFailure, RewardScores
from reward_service.http.limits import HttpLimits
from reward_service.http.pictures import decode_pictures, encode_png
from reward_service.http.wire_checks import (
    BAD_REQUEST,
    TOO_LARGE,
    WRONG_CONTENT,
    Group,
    Reserve,
    WireError,
    check_count,
    check_part,
    check_prompt,
)

JSON_TYPE = "application/json"
_SPARE_MARKS = 64
_LONGEST_REASON = 1000


class ScoreBody(BaseModel):
    """One group: a prompt and its pictures, each a base64 PNG or JPEG file, all of one size."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: str = Field(description="The text that the pictures were made for.")
    images: list[str] = Field(description="Base64 of a PNG or JPEG file a picture, without a data: prefix.")


class StampBody(BaseModel):
    """Which reward, version and weights answered."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    version: str
    digest: str


class DescriptionBody(BaseModel):
    """A served reward in words."""

    model_config = ConfigDict(frozen=True)

    name: str
    stamp: StampBody
    scorer: str
    kind: str
    settings: dict[str, Any]
    refused: str
    ready: bool


class PartBody(BaseModel):
    """A reward's say: rewards (B,), differences (B, B) antisymmetric, residual of the fit to the pairs."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    rewards: list[float]
    differences: list[list[float]]
    residual: Annotated[float, Field(ge=0.0)]
    stamp: StampBody


class FailureBody(BaseModel):
    """Why there is no score."""

    model_config = ConfigDict(strict=True, frozen=True)

    reason: str


class ScoreReply(PartBody):
    """The answer to a group. busy_s: seconds of the scorer; shadow: what a shadow version says, or null."""

    busy_s: Annotated[float, Field(ge=0.0)] = 0.0
    shadow: PartBody | FailureBody | None = None


_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class JsonWire:
    """application/json."""

    content_type: str = JSON_TYPE

    def encode_group(self, group: Group) -> bytes:
        """PNG files in base64; lossless."""
        images = [base64.b64encode(encode_png(pixels)).decode("ascii") for pixels in group.pixels]
        return json.dumps({"prompt": group.prompt, "images": images}).encode()

    def decode_group(self, body: bytes, limits: HttpLimits, reserve: Reserve) -> Group:
        """The group of a body. Raises WireError."""
        _refuse_many_values(body, limits)
        try:
            given = ScoreBody.model_validate_json(body)
        except ValidationError as error:
            raise _refused(error) from error
        check_prompt(given.prompt, limits)
        check_count(len(given.images), limits)
        files = [_unbase64(text, number) for number, text in enumerate(given.images)]
        return Group(given.prompt, decode_pictures(files, limits, reserve))

    def encode_reply(self, part: RewardScores, busy_s: float, shadow: Outcome | NoShadow) -> bytes:
        """One object; numbers are written so that reading gives the same float64."""
        reply = {**part_object(part), "busy_s": busy_s, "shadow": shadow_object(shadow)}
        return json.dumps(reply, allow_nan=False).encode()

    def decode_reply(self, body: bytes, images: int) -> Reply:
        """The reply to a group of so many pictures. Raises RewardError."""
        reply = _validated(ScoreReply, body)
        return Reply(check_part(_part(reply), images), reply.busy_s, read_shadow(reply.shadow, images))


def part_object(part: RewardScores) -> dict[str, Any]:
    """A part as JSON holds it."""
    return {
        "rewards": part.rewards.tolist(),
        "differences": part.differences.tolist(),
        "residual": part.residual,
        "stamp": vars(part.stamp),
    }


def shadow_object(shadow: Outcome | NoShadow) -> dict[str, Any] | None:
    """A shadow's say as JSON holds it."""
    if isinstance(shadow, RewardFailure):
        return {"reason": shadow.reason}
    return part_object(shadow) if isinstance(shadow, RewardScores) else None


def read_shadow(shadow: PartBody | FailureBody | None, images: int) -> Outcome | NoShadow:
    """A shadow's say; an unsound one is a failure of the shadow, and harms nothing."""
    if shadow is None:
        return NoShadow()
    if isinstance(shadow, FailureBody):
        return RewardFailure(shadow.reason[:_LONGEST_REASON])
    try:
        return check_part(_part(shadow), images)
    except RewardError as error:
        return RewardFailure(f"The shadow's answer is not sound. {error}")


def _validated(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise RewardError(f"It answered what is no {model.__name__}: {_first_problem(error)}") from error


def _part(body: PartBody) -> RewardScores:
    rows = {len(row) for row in body.differences}
    if len(rows) > 1:
        raise RewardError(f"Its differences have rows of several lengths: {sorted(rows)[:5]}.")
    stamp = ScorerStamp(body.stamp.name, body.stamp.version, body.stamp.digest)
    differences = np.array(body.differences, dtype=np.float64)
    return RewardScores(np.array(body.rewards, dtype=np.float64), differences, body.residual, stamp)


def _refuse_many_values(body: bytes, limits: HttpLimits) -> None:
    """A few megabytes of `[[],[],...` become gigabytes when parsed; a group needs a few marks only."""
    marks = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    allowed = limits.prompt_characters + limits.images + _SPARE_MARKS
    if marks > allowed:
        raise WireError(
            TOO_LARGE,
            f"The JSON has {marks} commas and opening brackets; a group within the limits "
            f"has at most {allowed}.",
        )


def _refused(error: ValidationError) -> WireError:
    """Unreadable JSON is a bad request; readable JSON of another form is wrong content."""
    unreadable = error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid"
    if unreadable:
        return WireError(BAD_REQUEST, f"The body is no JSON: {_first_problem(error)}")
    wanted = 'Send {"prompt": text, "images": [base64 of a PNG or JPEG file, ...]}.'
    return WireError(WRONG_CONTENT, f"{_first_problem(error)} {wanted}")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(step) for step in first["loc"])[:100]
    return f"{where}: {first['msg'][:200]}." if where else f"{first['msg'][:200]}."


def _unbase64(text: str, number: int) -> bytes:
    if text.startswith("data:"):
        raise WireError(
            WRONG_CONTENT, f"Picture {number} has a data: prefix; send only what follows base64, ."
        )
    if len(text) % 4:
        raise WireError(WRONG_CONTENT, f"Picture {number} is not base64: its length is no multiple of 4.")
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise WireError(WRONG_CONTENT, f"Picture {number} is not base64: {str(error)[:200]}.") from error
