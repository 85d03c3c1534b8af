"""What each command of `python -m reward_service` does. Each returns the exit status or raises PrdpError."""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config.yaml_text import read_yaml
from common.errors import ConfigError, RewardError
from common.terminal import complain, say, typed
from common.trajectory import RewardScores
from reward_service.cli.checks import Verdict, check_reward
from reward_service.contract.results import RUNNING, Outcome, Report, RewardFailure
from reward_service.contract.settings import ServedReward, read_section, read_settings
from reward_service.engine.build import BUILD_LIMIT_S, build_reward
from reward_service.http.address import check_address
from reward_service.http.client import HttpReward, Retrying
from reward_service.http.images import read_pictures
from reward_service.http.limits import HttpLimits
from reward_service.http.replies import scores_object
from reward_service.http.standalone import run_server
from reward_service.http.token import TokenSource

SOON = Retrying(tries=3)
"""A person waits: try again twice, not for minutes."""

_FEWEST_GROUPS = 2
_STATUS_LIMIT_S = 10.0
_UNKNOWN = "?"
_OUT_OF_TIME = 2
_PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Target:
    """A reward to be asked: a scorer in this process, or one behind an address.

    kind: "pointwise", "pairwise" or "pairs". ask: one group, uint8 (B, height, width, 3) RGB.
    """

    kind: Callable[[], str]
    ask: Callable[[str, NDArray[np.uint8]], Outcome]

    def score(self, prompt: str, images: NDArray[np.uint8]) -> RewardScores:
        """Score one group. Raises RewardError where there is no score."""
        outcome = self.ask(prompt, images)
        if isinstance(outcome, RewardFailure):
            raise RewardError(outcome.reason)
        return outcome

    def score_each(self, prompt: str, images: Sequence[NDArray[np.uint8]], names: list[str]) -> RewardScores:
        """Score images, (height, width, 3) each, as one group; of several sizes only where each has a number.

        Raises RewardError where a judge of pairs is given different sizes, or there is no score.
        """
        if len({image.shape for image in images}) == 1:
            return self.score(prompt, np.stack(images))
        if self.kind() != "pointwise":
            shown = [
                f"{name} {image.shape[1]}x{image.shape[0]}" for name, image in zip(names, images, strict=True)
            ]
            raise RewardError(f"Images that are compared must have one size; given: {', '.join(shown)}.")
        scores = [self.score(prompt, image[None]) for image in images]
        rewards = np.concatenate([score.rewards for score in scores])
        return RewardScores(rewards, rewards[:, None] - rewards[None, :], 0.0, scores[0].stamp)


def try_scorer(arguments: Namespace) -> int:
    """Score image files of one prompt."""
    prompt = typed(arguments.prompt)
    if Path(prompt).suffix.lower() in _PICTURES and Path(prompt).is_file():
        raise ConfigError(f"The last word is the prompt, and {prompt!r} is an image; add the prompt.")
    images = read_pictures(arguments.images, HttpLimits())
    # What the scorer prints is no part of the JSON.
    aside: AbstractContextManager[object] = redirect_stdout(sys.stderr) if arguments.json else nullcontext()
    with aside:
        scores = _target(arguments).score_each(prompt, images, arguments.images)
    if arguments.json:
        say(json.dumps(scores_object(scores)))
        return 0
    head = ["image", "reward", *(f"over {number}" for number in range(1, len(images) + 1))]
    rows = [
        [
            f"{row + 1} {name}",
            f"{scores.rewards[row]:.6g}",
            *(f"{value:.4g}" for value in scores.differences[row]),
        ]
        for row, name in enumerate(arguments.images)
    ]
    say(f"prompt: {prompt}")
    say(table(head, rows) if len(images) > 1 else table(head[:2], [rows[0][:2]]))
    residual = f", residual {scores.residual:.4g}" if scores.residual else ""
    say(f"version {scores.stamp.version}, digest {scores.stamp.digest[:12]}{residual}")
    return 0


def check(arguments: Namespace) -> int:
    """Make the checks of the contract and print what they found. Returns 1 where one failed."""
    served = _served(arguments)
    findings = check_reward(served, list(map(typed, arguments.prompt)), lambda: _clock(served))
    rows = [[finding.verdict.value, finding.check, finding.detail] for finding in findings]
    say(table(["", "check", "found"], rows, left=3))
    for finding in findings:
        if finding.advice:
            say(f"\n{finding.check}: {finding.advice}")
    failed = sum(finding.verdict is Verdict.FAILED for finding in findings)
    say(f"\n{failed} of {len(findings)} checks failed." if failed else "\nThe scorer keeps its contract.")
    return 1 if failed else 0


def bench(arguments: Namespace) -> int:
    """Time groups of noise, one after the other, for each group size and image size."""
    groups, sizes = whole_numbers(arguments.groups), whole_numbers(arguments.sizes)
    target = _target(arguments)
    rows = []
    for size in sizes:
        for count in groups:
            seconds = _seconds(target, typed(arguments.prompt), count, size, arguments.seconds)
            rate, median = len(seconds) * count / sum(seconds), statistics.median(seconds)
            figures = [f"{rate:.1f}", f"{median * 1e3:.1f}", f"{max(seconds) * 1e3:.1f}"]
            rows.append([f"{size}x{size}", str(count), str(len(seconds)), *figures])
    say(table(["images", "a group", "groups", "images/s", "median ms", "slowest ms"], rows))
    return 0


def serve(arguments: Namespace) -> int:
    """Answer HTTP until it is stopped."""
    served = _served(arguments)
    limits = read_section(HttpLimits, read_pairs(arguments.limit, "--limit"), "--limit")
    run_server(arguments.name, served, arguments.host, arguments.port, _token(arguments).read(), limits)
    return 0


def status(arguments: Namespace) -> int:
    """Ask all at once and print a table, then settings, refusals and what else is wrong.

    Returns 1 where one is not well: does not run, answer or take groups, or has refused its last settings.
    """
    reports = _by_address(arguments) if arguments.addresses else _of_cluster()
    if not reports:
        say("No reward application runs on this cluster.")
        return 0
    head = ["where", "state", "replicas", "name", "kind", "scorer", "version", "digest", "ready"]
    say(table(head, [[where, *_cells(one)] for where, one in reports.items()], left=len(head)))
    for where, one in reports.items():
        for settings in dict.fromkeys(json.dumps(own.settings, ensure_ascii=False) for own in one.answers):
            say(f"{where}: settings {settings}")
        for problem in _problems(one):
            say(f"{where}: {problem}")
    return 1 if any(any(_problems(one)) for one in reports.values()) else 0


def _cells(report: Report) -> list[str]:
    """replicas: those that answered, of those that run. Where replicas differ, all that they say."""
    said = [
        [
            own.name,
            own.kind,
            own.scorer,
            own.stamp.version,
            own.stamp.digest[:12],
            "yes" if own.ready else "no",
        ]
        for own in report.answers
    ]
    columns = zip(*said, strict=True) if said else [["?"]] * 6
    return [
        report.state,
        f"{len(said)}/{report.replicas}",
        *(", ".join(dict.fromkeys(column)) or "-" for column in columns),
    ]


def _problems(report: Report) -> Iterator[str]:
    """What is wrong, in words."""
    if report.told or report.state not in (RUNNING, _UNKNOWN):
        yield f"Serve calls it {report.state}. {report.told}".strip()
    if report.silence:
        yield f"{'not every replica answers' if report.answers else 'no answer'}: {report.silence}"
    if not all(own.ready for own in report.answers):
        yield "a replica takes no groups"
    for reason in dict.fromkeys(own.refused for own in report.answers if own.refused):
        yield f"the last change of settings was refused: {reason}"


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "try": try_scorer,
    "check": check,
    "bench": bench,
    "serve": serve,
    "status": status,
}


def read_pairs(given: Sequence[str], flag: str) -> dict[str, str | int | float | bool]:
    """KEY=VALUE texts as values: numbers, true and false as in YAML, anything else as the text it is.

    Raises ConfigError for a text without "=" or a key given twice.
    """
    read: dict[str, str | int | float | bool] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{flag} {text!r}: needed is KEY=VALUE, such as {flag} path=models/clip.")
        if key in read:
            raise ConfigError(f"{flag} {key} is given twice.")
        read[key] = _value(value)
    return read


def whole_numbers(text: str) -> list[int]:
    """ "1,4,16" -> [1, 4, 16]. Raises RewardError for anything but whole numbers from 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise RewardError(f"{text!r} must be whole numbers from 1 with commas between, such as 1,4,16.")
    return [int(part) for part in parts]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of columns under heads; the first `left` columns start at the left, the others end right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = (
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(cells)
        ]
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _value(text: str) -> str | int | float | bool:
    try:
        value = read_yaml(text, "value")
    except ConfigError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def _token(arguments: Namespace) -> TokenSource:
    return TokenSource(arguments.token_env, arguments.token_file)


def _is_address(arguments: Namespace) -> bool:
    return bool(arguments.scorer.startswith(("http://", "https://")))


def _served(arguments: Namespace) -> ServedReward:
    """The settings that SCORER, --option and --set describe. Raises ConfigError or RewardError."""
    if _is_address(arguments):
        raise ConfigError(
            f"{arguments.scorer} is the address of a reward that runs already: name a scorer, or ask the "
            "address with try or bench."
        )
    settings: dict[str, Any] = dict(read_pairs(arguments.set, "--set"))
    taken = sorted({"scorer", "options"} & set(settings))
    if taken:
        raise ConfigError(f"--set {taken[0]}: give the scorer as SCORER and its options by --option.")
    options = read_pairs(arguments.option, "--option")
    return read_settings({"scorer": arguments.scorer, "options": options, **settings}, "--set")


def _target(arguments: Namespace) -> Target:
    is_address = _is_address(arguments)
    own = ("option", "set") if is_address else ("token_env", "token_file")
    if given := [f"--{name.replace('_', '-')}" for name in own if vars(arguments)[name]]:
        what = "an address has its own" if is_address else "a scorer that runs here needs none"
        raise ConfigError(f"{' and '.join(given)} with {arguments.scorer}: {what}; leave it out.")
    if is_address:
        token = _token(arguments).read()
        check_address(arguments.scorer, token, insecure=False)
        client = HttpReward(arguments.scorer, token, retrying=SOON)
        return Target(
            lambda: client.describe().kind, lambda prompt, images: client.score(prompt, images).outcome
        )
    import torch

    served = _served(arguments)
    torch.set_num_threads(served.threads)
    with _clock(served):
        service = build_reward("reward", served)
    return Target(
        lambda: service.kind,
        lambda prompt, images: service.score_groups([(prompt, images)], lambda: _clock(served))[0],
    )


@contextmanager
def _clock(served: ServedReward) -> Iterator[None]:
    """End the process where the scorer works longer than the `timeout_s` that was given.

    Without one it has as long as a service gives it to be ready: the first call may fetch weights.
    """
    limit_s = served.timeout_s if "timeout_s" in served.model_fields_set else BUILD_LIMIT_S
    clock = threading.Timer(min(limit_s, threading.TIMEOUT_MAX), _give_up, [limit_s])
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


def _give_up(limit_s: float) -> None:
    """A thread that hangs cannot be stopped, only its process."""
    complain(f"error: The scorer worked longer than {limit_s:g} s; --set timeout_s=SECONDS allows others.")
    os._exit(_OUT_OF_TIME)


def _seconds(target: Target, prompt: str, count: int, size: int, limit_s: float) -> list[float]:
    """Seconds a group, for limit_s but at least two groups; the first loads weights and is not counted."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    target.score(prompt, images)
    seconds: list[float] = []
    while len(seconds) < _FEWEST_GROUPS or sum(seconds) < limit_s:
        started = time.perf_counter()
        target.score(prompt, images)
        seconds.append(time.perf_counter() - started)
    return seconds


def _by_address(arguments: Namespace) -> dict[str, Report]:
    token = _token(arguments).read()

    def ask(address: str) -> Report:
        try:
            found = HttpReward(address, token, _STATUS_LIMIT_S, retrying=SOON).describe()
        except RewardError as error:
            return Report(_UNKNOWN, "", 1, (), str(error))
        return Report(RUNNING, "", 1, (found,), "")

    with ThreadPoolExecutor(len(arguments.addresses)) as pool:
        return dict(zip(arguments.addresses, pool.map(ask, arguments.addresses), strict=True))


def _of_cluster() -> dict[str, Report]:
    from reward_service.on_ray.handles import report_applications  # only here is Ray needed

    return report_applications()
