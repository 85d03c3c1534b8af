"""The bearer token of an HTTP reward: where it comes from, how it is compared, and that it is never shown."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from common.errors import RewardError
from common.hidden import remember

_LONGEST = 4096
_ALLOWED = re.compile(r"[A-Za-z0-9._~+/=-]{16,4096}")
_HOW = "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Token(SecretStr):
    """A secret, or none (empty): 16 to 4096 letters, digits and . _ ~ + / = - . Its repr and str hide it.

    from_env and from_file check it.
    """

    @staticmethod
    def from_env(name: str) -> Token:
        """The token in an environment variable. Raises RewardError where it is unset or malformed."""
        if name not in os.environ:
            raise RewardError(f"The environment variable {name} is not set; it must hold the token. {_HOW}")
        return _checked(os.environ[name], f"the environment variable {name}")

    @staticmethod
    def from_file(path: str | Path) -> Token:
        """The token in a file of one line. Raises RewardError where it cannot be read or is malformed."""
        try:
            with Path(path).open(encoding="ascii") as file:
                return _checked(file.read(_LONGEST + 2), f"the file {path}")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
            raise RewardError(f"Cannot read the token from {path}: {why}.") from error

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return bool(self.get_secret_value())

    def matches(self, authorization: bytes) -> bool:
        """Whether an Authorization header's value is `Bearer <this token>`; False where there is no token."""
        scheme, _, given = authorization.partition(b" ")
        same = secrets.compare_digest(given.strip(), self.get_secret_value().encode())
        return self.is_set and scheme.lower() == b"bearer" and same

    def headers(self) -> dict[str, str]:
        """The header that carries it; empty without a token."""
        remember(self.get_secret_value())
        return {"Authorization": f"Bearer {self.get_secret_value()}"} if self.is_set else {}


NO_TOKEN = Token("")
"""Only what this machine sends is answered, see Gate."""


@dataclass(frozen=True)
class TokenSource:
    """Where a process finds the token, so that only the place travels: at most one of the two is not empty.

    env: name of an environment variable; file: path of a file of one line.
    """

    env: str = ""
    file: str = ""

    def read(self) -> Token:
        """The token, NO_TOKEN where no place is named. Raises RewardError."""
        if self.env and self.file:
            raise RewardError(
                f"Give the token by environment variable ({self.env}) or file ({self.file}), not by both."
            )
        if self.env:
            return Token.from_env(self.env)
        return Token.from_file(self.file) if self.file else NO_TOKEN


def _checked(text: str, where: str) -> Token:
    if not _ALLOWED.fullmatch(text.strip()):
        raise RewardError(
            f"The token in {where} has {len(text.strip())} characters; needed are 16 to 4096 letters, digits "
            f"and . _ ~ + / = - . {_HOW}"
        )
    remember(text.strip())
    return Token(text.strip())
