"""Answers that are no result: each has a status, a type to program against, and a message for people."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import Response
from pydantic import ValidationError

from cprs_integrations.errors import ArgumentError, CPRSError

ARGUMENTS = (
    "documents", "query", "instruction", "granularity", "threshold", "max_ratio", "max_tokens", "titles", "protect",
    "prefilter", "stream", "keep", "id",
)  # fmt: skip
HUNG_UP = 499
"""The status in logs and metrics of a request whose client did not wait for an answer."""
_WORD = re.compile(r"[a-z_]+")


class Refusal(Exception):  # noqa: N818 - it is an answer
    """A request that gets no result.

    Attributes:
        status: of HTTP.
        type: a name to program against.
        message: what was wrong and the way out; never a word of the documents.
        argument: which argument was wrong, if it was one.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        argument: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.message, self.argument = status, type, message, argument
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: Exception) -> "Refusal":
        """What to answer after an error: bad arguments are explained; of what broke, nothing but its kind is told."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, ValidationError):
            return _invalid(error)
        if isinstance(error, ArgumentError):
            found = [word for word in _WORD.findall(str(error)) if word in ARGUMENTS]
            return cls(422, "ArgumentError", str(error), found[0] if found else None)
        kind = type(error).__name__ if isinstance(error, CPRSError) else "InternalError"
        return cls(500, kind, "the compression failed here, not by your request; the server's log has the cause under this id")

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON of the answer."""
        error = {"type": self.type, "argument": self.argument, "message": self.message, "request_id": request_id}
        return {"error": {name: value for name, value in error.items() if value is not None}}

    def response(self, request_id: str) -> Response:
        """The answer."""
        return Response(ascii_json(self.body(request_id)), self.status, self.headers, "application/json")


def ascii_json(found: Any) -> bytes:
    """Write JSON in ASCII alone, so that a lone surrogate of a document or a name travels, too."""
    return json.dumps(found, allow_nan=False).encode()


def _invalid(error: ValidationError) -> Refusal:
    """Tell the first thing that is wrong, by name, and not what was sent."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [(index, _named(wrong["loc"])) for index, wrong in enumerate(found)]
    argument = places[0][1][0]
    index, (name, *rest) = max((place for place in places if place[1][0] == argument), key=lambda place: len(place[1]))
    first = found[index]  # of what an argument may be, that to which it came closest
    place = "".join(f"[{part}]" for part in rest)
    if first["type"] == "extra_forbidden":
        known = ", ".join(ARGUMENTS)
        return Refusal(422, "ArgumentError", f"there is no argument of this name; there are {known}", str(name)[:64])
    return Refusal(422, "ArgumentError", f"{name}{place}: {first['msg']}".removeprefix(": "), str(name) or None)


def _named(location: Sequence[str | int]) -> list[str | int]:
    """An argument and the indices in it, without pydantic's words for the kinds that it tried."""
    return [location[0] if location else "", *(part for part in location[1:] if isinstance(part, int))]
