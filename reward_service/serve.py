"""What `serve deploy` builds: one application per reward, as reward_service/serve.yaml shows."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator
from ray import serve

from common.config.fields import Section, setting
from reward_service.contract.settings import read_section
from reward_service.http.limits import HttpLimits
from reward_service.http.token import TokenSource
from reward_service.on_ray.app import served_app
from reward_service.on_ray.gateway import build_gateway


class AppArguments(Section):
    """Arguments of an application (`args`). Changing any of them starts new replicas; `user_config` does not.

    The token itself is in none of them: they say where each process finds it.
    """

    name: str = setting(..., "", "Name of the reward: in its stamp, its metrics and its log.", min_length=1)
    http: bool = setting(False, "", "Answer HTTP too, under the application's route_prefix.")
    token_env: str = setting("", "", "Environment variable of the gateway's process that holds the token.")
    token_file: str = setting("", "", "File of one line on the gateway's machine that holds the token.")
    limits: HttpLimits = setting(HttpLimits(), "", "What one HTTP request may cost.")
    code_version: str = setting("", "", "A label of your own; change it to start new replicas of new code.")

    @field_validator("name")
    @classmethod
    def _a_label(cls, value: str) -> str:
        if not value.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{value!r} cannot be a reward's name; use letters, digits, '_' and '-'")
        return value


def build(args: dict[str, Any]) -> serve.Application:
    """An application of one reward, for `import_path: reward_service.serve:build`.

    Its settings are the `user_config` of its deployment Reward. Raises ConfigError naming what is wrong.
    """
    arguments = read_section(AppArguments, args, "args of the reward application")
    replicas = served_app(arguments.name)
    if not arguments.http:
        return replicas
    return build_gateway(replicas, arguments.limits, TokenSource(arguments.token_env, arguments.token_file))
