"""What goes over the wire: requests in the words of `CPRSEngine.compress`, and those of the reference's server."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import re2
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cprs_integrations.context import readable
from cprs_integrations.errors import ArgumentError
from cprs_integrations.instructions import Granularity

_Share = Annotated[float, Field(gt=0, le=1)]
_Text = Annotated[str, StringConstraints(strict=True)]


class Selection(BaseModel):
    """How much to keep."""

    model_config = ConfigDict(extra="forbid")

    granularity: Granularity | None = Field(None, description="Units to snap to; null: as the critic marks it.")
    threshold: float | None = Field(None, ge=0, le=1, description="Keep units whose score reaches it.")
    max_ratio: _Share | None = Field(None, description="Upper bound of kept to all characters.")
    max_tokens: int | None = Field(None, ge=1, strict=True, description="Upper bound of kept tokens, as the critic counts.")
    protect: list[_Text] = Field(
        default_factory=list,
        max_length=64,
        description="Regular expressions whose matches are kept first. RE2's syntax: \\w, \\d, \\s and \\b know ASCII alone.",
    )

    def bounds(self, *, is_python: bool) -> dict[str, Any]:
        """The arguments of `Scored.select`.

        Args:
            is_python: whether patterns are Python's own, which can take hours.

        Raises:
            ArgumentError: RE2 does not take a pattern.
        """
        chosen = self.model_dump(include={"granularity", "threshold", "max_ratio", "max_tokens"})
        return chosen | {"protect": self.protect if is_python else [_linear(pattern) for pattern in self.protect]}


class Compression(Selection):
    """A question about documents, and how much of them to keep: the arguments of `CPRSEngine.compress`."""

    documents: _Text | list[_Text] = Field(description="One text, or several.", examples=[["Bread is made of flour."]])
    query: _Text | None = Field(None, description="The question.", examples=["What is bread made of?"])
    instruction: _Text | None = Field(None, description="What to keep, in natural language, or a named instruction.")
    titles: list[_Text | None] | None = Field(None, description="One a document; read, never returned.")
    prefilter: _Share | None = Field(None, description="Share of the windows to read, by the words of the query.")
    stream: bool = Field(False, description="Answer with server-sent events: progress, then result or error.")
    keep: bool = Field(False, description="Keep the scores for a while, for POST /v1/select under the id in the answer.")

    @property
    def texts(self) -> list[str]:
        """The documents."""
        return [self.documents] if isinstance(self.documents, str) else self.documents

    def question(self) -> dict[str, Any]:
        """The arguments of `CPRSEngine.job`, but for the documents."""
        return self.model_dump(include={"query", "instruction", "granularity", "titles", "prefilter"})


class Reselection(Selection):
    """Another selection from scores that were kept."""

    id: Annotated[str, StringConstraints(strict=True, max_length=64)] = Field(description="From an answer to keep: true.")


class _Message(BaseModel):
    role: str
    content: str


class _Input(BaseModel):
    messages: list[_Message] = Field(min_length=3, max_length=3)


class _Payload(BaseModel):
    input: _Input
    parameters: dict[str, Any] = Field(default_factory=dict)


class ReferenceRequest(BaseModel):
    """A request of the reference's server: system prompt, question and context as three messages."""

    header: dict[str, Any] = Field(default_factory=dict)
    payload: _Payload


def parsed(body: bytes) -> Any:
    """The JSON of a body; unlike pydantic's own reader, Python's takes lone surrogates, which real documents have.

    Raises:
        ArgumentError: it is no JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"the body must be JSON in UTF-8 ({error})") from error


class _Linear:
    """A pattern of RE2, whose time grows with the text alone."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern

    def finditer(self, text: str) -> Iterator[Any]:
        """Matches in a text, as `re.Pattern.finditer` gives them."""
        found: Iterator[Any] = self._pattern.finditer(readable(text))
        return found


def _linear(pattern: str) -> _Linear:
    options = re2.Options()
    options.log_errors = False
    try:
        return _Linear(re2.compile(pattern, options))
    except re2.error as error:
        reason = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        raise ArgumentError(
            f"protect: {pattern!r} is not taken by RE2 ({reason}), which is used here because it cannot hang: "
            "no look-around and no back-references"
        ) from error
