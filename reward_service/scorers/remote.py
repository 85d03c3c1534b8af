"""A reward of another server, so that an application here can stand before one outside."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.config.fields import Section, setting
from common.errors import RewardError
from common.trajectory import RewardScores
from reward_service.contract.results import Description, RewardFailure
from reward_service.http.address import check_address
from reward_service.http.client import HttpReward
from reward_service.http.token import NO_TOKEN, Token
from reward_service.scorers.options import Configured

_POINTWISE_RESIDUAL = 1e-6


class RemoteOptions(Section):
    """Options of remote and remote_score."""

    url: str = setting(
        ..., "", "What stands before /v1/score, e.g. https://rewards.example.org/pickscore.", min_length=1
    )
    token_env: str = setting(
        "", "", "Environment variable of this process that holds the token; empty = none."
    )
    deadline_s: float = setting(100.0, "s", "Longest for one group, retries included.", gt=0.0)
    insecure: bool = setting(False, "", "Send the token unencrypted to another machine.")
    deterministic: bool = setting(True, "", "False: the reward may answer otherwise when asked again.")


class _Remote(Configured[RemoteOptions]):
    """What both scorers share. Options: RemoteOptions.

    version and digest are those that the server names when this scorer is built. Where the server answers
    with another stamp later, groups fail, saying so; give this reward a new `version` label to take it.
    """

    model = RemoteOptions

    def check(self) -> None:
        """Raises RewardError where url is no address. The server is not asked."""
        check_address(self.options.url, NO_TOKEN, self.options.insecure)

    @property
    def deterministic(self) -> bool:
        """As the options say."""
        return self.options.deterministic

    @property
    def version(self) -> str:
        """The server's."""
        return self._described.stamp.version

    @property
    def digest(self) -> str:
        """The server's."""
        return self._described.stamp.digest

    def _ask(self, prompt: str, images: NDArray[np.uint8]) -> RewardScores:
        """All that the server says about a group. Raises RewardError where it gives no score."""
        url, before = self.options.url, self._described.stamp
        outcome = self._server.score(prompt, images).outcome
        if isinstance(outcome, RewardFailure):
            raise RewardError(f"The reward at {url} {outcome.reason}")
        now = outcome.stamp
        if now != before:
            raise RewardError(
                f"The reward at {url} is {now.name} {now.version} ({now.digest[:12]}) now, and was "
                f"{before.name} {before.version} ({before.digest[:12]}) when this scorer was built. Change "
                "this reward's `version` label to build it again."
            )
        return outcome

    @cached_property
    def _server(self) -> HttpReward:
        options = self.options
        token = Token.from_env(options.token_env) if options.token_env else NO_TOKEN
        return HttpReward(options.url, token, options.deadline_s, insecure=options.insecure)

    @cached_property
    def _described(self) -> Description:
        return self._server.describe()


class RemoteReward(_Remote):
    """The differences of a reward behind an address: url + /v1/score. Right for judges of every kind.

    Differences are all that `compare` gives, so the rewards made of them have mean 0 in every group: training
    by pairs is the same, a curve of rewards is not. RemoteScore keeps the numbers of a pointwise reward.
    """

    name = "remote"

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """uint8 (B, height, width, 3) -> float64 (B, B). Raises RewardError where the server gives none."""
        return self._ask(prompt, images).differences


class RemoteScore(_Remote):
    """The numbers of a pointwise reward behind an address.

    A server whose differences are not those of its numbers (a judge of pairs) fails: use RemoteReward.
    """

    name = "remote_score"

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3), a prompt each -> float64 (M,). A request a run of one prompt.

        Raises RewardError where the server gives no score, or is a judge of pairs.
        """
        starts = [row for row in range(len(prompts)) if row == 0 or prompts[row] != prompts[row - 1]]
        ends = [*starts[1:], len(prompts)]
        runs = [
            self._rewards(prompts[start], images[start:end]) for start, end in zip(starts, ends, strict=True)
        ]
        return np.concatenate(runs)

    def _rewards(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        scores = self._ask(prompt, images)
        gap = np.abs(scores.differences - (scores.rewards[:, None] - scores.rewards[None, :])).max()
        if gap > _POINTWISE_RESIDUAL * max(1.0, float(np.abs(scores.differences).max())):
            raise RewardError(
                f"The reward {scores.stamp.name!r} compares images: its differences are not those of its "
                f"rewards (by up to {gap:g}). Use the scorer remote, which passes its differences on."
            )
        return scores.rewards
