"""What a person reads of a replica that could not start."""

from __future__ import annotations

import traceback

import pytest

from common.errors import ConfigError, RewardError
from reward_service.on_ray import deployment
from reward_service.on_ray.deployment import _last_words


@pytest.mark.parametrize("kind", [RewardError, ConfigError])
def test_our_own_errors_are_cut_out_of_a_traceback_as_a_whole(kind: type[Exception]) -> None:
    try:
        raise kind("settings: 2 problems\n  first\n  second")
    except kind:
        told = traceback.format_exc()
    assert _last_words(told) == "settings: 2 problems\n  first\n  second"


def test_of_other_errors_the_last_line_is_told() -> None:
    assert _last_words("Traceback\n  File x\nOSError: no disk\n") == "OSError: no disk"


def test_an_application_that_is_gone_while_it_is_waited_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "applications", dict)
    with pytest.raises(RewardError, match="Serve has no application 'run-red'"):
        deployment._wait_until_running(("run-red",), 5.0, lambda _: None)


@pytest.mark.parametrize(("others", "ends"), [((), True), (("somebody",), False)])
def test_serve_ends_with_its_last_applications_only(
    others: tuple[str, ...], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, calls = {"run-red", *others}, list[str]()
    monkeypatch.setattr(deployment, "applications", lambda: dict.fromkeys(there))
    monkeypatch.setattr(deployment.serve, "delete", there.remove)
    monkeypatch.setattr(deployment.serve, "shutdown", lambda: calls.append("shutdown"))
    deployment.end(deployment.Deployment(("run-red", "run-gone"), stop_serve=True))
    assert (there, bool(calls)) == (set(others), ends)
