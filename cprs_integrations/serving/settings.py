"""What an operator decides: limits, the token, and where they come from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from cprs_integrations.errors import ArgumentError

PREFIX = "CPRS_"
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Settings:
    """Limits of a server. Each can be set by the environment variable `CPRS_` and its name in capitals.

    Attributes:
        token: what clients must send as `Authorization: Bearer TOKEN`; None lets everybody in who reaches the port.
        max_body_bytes: largest body of a request. While a body is parsed, in one go, nothing else is answered: some 10 ms
            for each megabyte.
        max_documents: most documents of a request.
        max_queue: requests taken and not yet answered; as many more may wait for a place, and the bodies that arrive and wait
            may have as much memory as so many of the largest; beyond that each gets 429.
        queue_seconds: how long a request waits for a place; then it gets 429.
        body_seconds: how long a client may take to send a body.
        request_seconds: how long a request may take once it has its place, waiting for others included; then it gets 504.
        kept_seconds: how long scores are kept for `/v1/select` after they were last used.
        kept_bytes: how much memory they may take together; the oldest go first.
        python_patterns: run `protect` with Python's backtracking engine, on whose patterns a client can hang the server for
            hours: for trusted clients alone.
    """

    token: str | None = field(default=None, repr=False)
    max_body_bytes: int = 8 * 2**20
    max_documents: int = 1_000
    max_queue: int = 64
    queue_seconds: float = 2.0
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    kept_seconds: float = 600.0
    kept_bytes: int = 256 * 2**20
    python_patterns: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ArgumentError("token must be printable ASCII and not blank: it travels in a header")
        for name in (known.name for known in fields(self) if known.type in (int, float)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ArgumentError(f"{name} must be a number above 0, not {value!r}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the variables that are set; an empty one counts as not set.

        Raises:
            ArgumentError: a variable has a value it cannot have.
        """
        named = {known.name: (PREFIX + known.name.upper(), known.type) for known in fields(cls)}
        return cls(**{
            name: _read(variable, kind, environment[variable])
            for name, (variable, kind) in named.items()
            if environment.get(variable)
        })  # fmt: skip


def _read(variable: str, kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() in _YES + _NO:
            return text.lower() in _YES
        raise ArgumentError(f"{variable} must be one of {', '.join(_YES + _NO)}, not {text!r}")
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError as error:
        raise ArgumentError(f"{variable} must be a {'whole ' * (kind is int)}number, not {text!r}") from error
