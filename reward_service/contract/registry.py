"""From the configuration's reward to a scorer: what can be checked is checked before anything is loaded."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from common.config.services import ScorerSection
from common.errors import RewardError
from common.hidden import error_without_secrets, remember_options, without_secrets
from reward_service.contract.results import LONGEST_LABEL
from reward_service.contract.reward import methods_of
from reward_service.contract.scorer import NEEDED, AnyScorer
from reward_service.contract.settings import LONGEST_VERSION_LABEL
from reward_service.scorers import SHIPPED

LONGEST_VERSION = LONGEST_LABEL - LONGEST_VERSION_LABEL - len("+")
"""Of a scorer, in characters: its stamp must have room for the label that settings join to it."""


@runtime_checkable
class ChecksOptions(Protocol):
    """A scorer class may have this static method, to refuse options before it is built and Ray started."""

    @staticmethod
    def check_options(**options: Any) -> None:
        """Raises RewardError where the options cannot work. Must not load weights."""


def check_spec(spec: ScorerSection) -> type[AnyScorer]:
    """The scorer's class, once its name, interface and options are checked without loading weights.

    Raises RewardError saying what was given, what is allowed and how to mend it; no secret among the options.
    """
    scorer = _import_class(scorer_path(spec.scorer))
    _check_interface(scorer, spec.scorer)
    _check_arguments(scorer, spec)
    if isinstance(scorer, ChecksOptions):
        try:
            scorer.check_options(**spec.options)
        except RewardError as error:
            raise RewardError(_shown(str(error), spec)) from _cause(error, spec)
    return scorer


def build_scorer(spec: ScorerSection) -> AnyScorer:
    """A scorer as configured. Shipped scorers read their weights at first use.

    Raises RewardError where check_spec refuses, the constructor raises, version or digest is no text, version
    is empty or too long for a stamp, or check_prompts are no texts.
    """
    remember_options(spec.options)
    scorer_class = check_spec(spec)
    try:
        scorer = scorer_class(**spec.options)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's constructor may raise anything
        what = f"{spec.scorer} with options {without_secrets(spec.options)} raised {error!r} when built."
        raise RewardError(_shown(what, spec)) from _cause(error, spec)
    for field in ("version", "digest"):
        value = getattr(scorer, field, None)
        if not isinstance(value, str):
            raise RewardError(
                f"{spec.scorer} needs the attribute {field}, a text (digest may be empty), got {value!r}."
            )
    if not 0 < len(scorer.version) <= LONGEST_VERSION:
        raise RewardError(
            f"{spec.scorer}: version has {len(scorer.version)} characters; allowed: 1 to {LONGEST_VERSION}. "
            "Name the code by a short text, such as '1'."
        )
    prompts = getattr(scorer, "check_prompts", ())
    if not isinstance(prompts, tuple) or not all(isinstance(prompt, str) for prompt in prompts):
        raise RewardError(f"{spec.scorer}: check_prompts must be a tuple of texts, got {prompts!r}.")
    return scorer


@contextmanager
def naming(name: str) -> Iterator[None]:
    """RewardErrors inside begin with the reward's name in the configuration."""
    try:
        yield
    except RewardError as error:
        raise RewardError(f"Reward {name!r}: {error}") from error


def scorer_path(name: str) -> str:
    """module:Class of a shipped scorer's name, or the path as it is. Raises RewardError for others."""
    if ":" in name:
        return name
    if name in SHIPPED:
        return SHIPPED[name]
    near = difflib.get_close_matches(name, SHIPPED, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise RewardError(
        f"no scorer named {name!r}; shipped: {sorted(SHIPPED)}.{hint} "
        "Your own is given as my_package.my_module:MyScorer."
    )


def _import_class(path: str) -> type:
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"scorer {path!r}: cannot import {module_name!r}: {error!r}. "
            "Install its package, or name the folder that it is in: PYTHONPATH=FOLDER before the command."
        ) from error
    found = vars(module).get(class_name)
    if not inspect.isclass(found):
        classes = sorted(name for name, value in vars(module).items() if inspect.isclass(value))
        near = difflib.get_close_matches(class_name, classes, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Its classes: {classes}."
        raise RewardError(f"scorer {path!r}: {module_name} has no class {class_name!r}.{hint}")
    return found


def _check_interface(scorer: type, name: str) -> None:
    methods = methods_of(scorer)
    if len(methods) != 1:
        raise RewardError(f"{name} must have {NEEDED}; it has {' and '.join(methods) or 'none of them'}.")
    set_when_built = any("__init__" in vars(base) for base in scorer.__mro__[:-1])
    missing = [field for field in ("version", "digest") if not hasattr(scorer, field)]
    if set_when_built:
        return
    if missing:
        raise RewardError(f"{name} lacks {' and '.join(missing)}: texts that name its code and its weights.")
    for field in ("version", "digest"):
        value = inspect.getattr_static(scorer, field)
        if isinstance(value, int | float | None):
            raise RewardError(f"{name}.{field} must be a text, such as {str(value)!r}; it is {value!r}.")


def _check_arguments(scorer: type, spec: ScorerSection) -> None:
    signature = inspect.signature(scorer)
    try:
        signature.bind(**spec.options)
    except TypeError as error:
        accepted = ", ".join(str(parameter) for parameter in signature.parameters.values()) or "none"
        raise RewardError(
            f"{spec.scorer} cannot take options {without_secrets(spec.options)}: {error}. "
            f"Accepted: {accepted}."
        ) from error


def _shown(error: str, spec: ScorerSection) -> str:
    return error_without_secrets(error, spec.options)


def _cause(error: BaseException, spec: ScorerSection) -> BaseException | None:
    """The error that a traceback shows as the cause; None where it would show a secret."""
    return error if _shown(repr(error), spec) == repr(error) else None
