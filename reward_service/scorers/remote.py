"""A reward of another server, so that an application here can stand before one outside."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.results import Description, RewardFailure, RewardScores
from reward_service.http.address import check_address
from reward_service.http.client import HttpReward
from reward_service.http.token import NO_TOKEN, Token

_POINTWISE_RESIDUAL = 1e-6


class RemoteReward:
    """The differences of a reward behind an address: url + /v1/score. Right for judges of every kind.

    url: e.g. https://rewards.example.org/pickscore. token_env: environment variable of this process that
    holds its token; empty for none. deadline_s: longest for one group, retries included. insecure: send the
    token unencrypted to another machine. deterministic: false where it may answer otherwise when asked again.

    Differences are all that `compare` gives, so the rewards made of them have mean 0 in every group: training
    by pairs is the same, a curve of rewards is not. RemoteScore keeps the numbers of a pointwise reward.

    version and digest are those that the server names when this scorer is built. Where the server answers
    with another stamp later, groups fail, saying so; give this reward a new `version` label to take it.
    """

    def __init__(
        self,
        url: str,
        token_env: str = "",
        deadline_s: float = 100.0,
        insecure: bool = False,
        deterministic: bool = True,
    ) -> None:
        self.deterministic = deterministic
        self._url = url
        self._token_env = token_env
        self._deadline_s = deadline_s
        self._insecure = insecure

    @staticmethod
    def check_options(
        url: str,
        token_env: str = "",
        deadline_s: float = 100.0,
        insecure: bool = False,
        deterministic: bool = True,
    ) -> None:
        """Raises RewardError where the options cannot work. The server is not asked."""
        for name, value in (("url", url), ("token_env", token_env)):
            if not isinstance(value, str):
                raise RewardError(f"remote option {name} must be text, got {value!r}.")
        if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float) or not deadline_s > 0:
            raise RewardError(f"remote option deadline_s must be seconds above 0, got {deadline_s!r}.")
        for name, flag in (("insecure", insecure), ("deterministic", deterministic)):
            if not isinstance(flag, bool):
                raise RewardError(f"remote option {name} must be true or false, got {flag!r}.")
        check_address(url, NO_TOKEN, insecure)

    @property
    def version(self) -> str:
        """The server's."""
        return self._described.stamp.version

    @property
    def digest(self) -> str:
        """The server's."""
        return self._described.stamp.digest

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """uint8 (B, height, width, 3) -> float64 (B, B). Raises RewardError where the server gives none."""
        return self.ask(prompt, images).differences

    def ask(self, prompt: str, images: NDArray[np.uint8]) -> RewardScores:
        """All that the server says about a group. Raises RewardError where it gives no score."""
        outcome = self._server.score(prompt, images).outcome
        if isinstance(outcome, RewardFailure):
            raise RewardError(f"The reward at {self._url} {outcome.reason}")
        _check_same(self._url, self._described.stamp, outcome.stamp)
        return outcome

    @cached_property
    def _server(self) -> HttpReward:
        token = Token.from_env(self._token_env) if self._token_env else NO_TOKEN
        return HttpReward(self._url, token, self._deadline_s, insecure=self._insecure)

    @cached_property
    def _described(self) -> Description:
        return self._server.describe()


class RemoteScore:
    """The numbers of a pointwise reward behind an address. Options, version and digest are RemoteReward's.

    A server whose differences are not those of its numbers (a judge of pairs) fails: use RemoteReward.
    """

    def __init__(
        self,
        url: str,
        token_env: str = "",
        deadline_s: float = 100.0,
        insecure: bool = False,
        deterministic: bool = True,
    ) -> None:
        self.deterministic = deterministic
        self._remote = RemoteReward(url, token_env, deadline_s, insecure, deterministic)

    check_options = staticmethod(RemoteReward.check_options)

    @property
    def version(self) -> str:
        """The server's."""
        return self._remote.version

    @property
    def digest(self) -> str:
        """The server's."""
        return self._remote.digest

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
        part = self._remote.ask(prompt, images)
        gap = np.abs(part.differences - (part.rewards[:, None] - part.rewards[None, :])).max()
        if gap > _POINTWISE_RESIDUAL * max(1.0, float(np.abs(part.differences).max())):
            raise RewardError(
                f"The reward {part.stamp.name!r} compares pictures: its differences are not those of its "
                f"rewards (by up to {gap:g}). Use the scorer remote, which passes its differences on."
            )
        return part.rewards


def _check_same(url: str, built_with: ScorerStamp, answered: ScorerStamp) -> None:
    if answered != built_with:
        raise RewardError(
            f"The reward at {url} is {answered.name} {answered.version} ({answered.digest[:12]}) now, and "
            f"was {built_with.name} {built_with.version} ({built_with.digest[:12]}) when this scorer was "
            "built. Change this reward's `version` label to build it again."
        )
