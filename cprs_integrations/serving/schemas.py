"""What goes over the wire, in the words of the Python API."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from cprs_integrations.instructions import Granularity

_T = TypeVar("_T")


class _FailFast(FailFast):
    __hash__ = object.__hash__  # which `|` wants before Python 3.12


Items = Annotated[list[_T], _FailFast()]
"""A list of which the first wrong item is told: errors of all that a body can hold would take gigabytes."""


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, sent: dict[str, Any]) -> dict[str, Any]:
        """Leave one unknown name to be told, for the same reason."""
        unknown = next((name for name in sent if name not in cls.model_fields), None)
        return {name: value for name, value in sent.items() if name in cls.model_fields or name == unknown}


class Selection(_Body):
    """Which bounds a selection has."""

    granularity: Granularity | None = Field(None, description="Units to snap to; null: as the critic marks it.")
    threshold: float | None = Field(None, ge=0, le=1, description="Keep units whose score reaches it.")
    max_ratio: float | None = Field(None, gt=0, le=1, description="Upper bound of returned to all characters.")
    max_tokens: int | None = Field(None, ge=1, description="Upper bound of the returned text in the critic's tokens.")
    protect: Items[str] = Field(
        default_factory=list,
        description="Regular expressions in Python's syntax whose matches are kept first, inside the bounds. They are run in "
        "linear time: look-around, back-references, possessive repeats and patterns that match nothing are refused.",
    )

    def bounds(self) -> dict[str, Any]:
        """The arguments of `Scored.select`, but for protect and granularity."""
        return {"threshold": self.threshold, "max_ratio": self.max_ratio, "max_tokens": self.max_tokens}


class CompressRequest(Selection):
    """Documents and a question: the arguments of `CPRSEngine.compress`."""

    documents: str | Items[str] = Field(description="One text or several.")
    query: str | None = Field(None, description="The user's question; may be empty when there is an instruction.")
    instruction: str | None = Field(
        None, description="What to keep, in natural language, or by name; null: sentences that help."
    )
    titles: Items[str | None] | None = Field(None, description="One a document, read as context, never part of the text.")
    prefilter: float | None = Field(None, gt=0, le=1, description="Share of windows to read, by the query's words; null: all.")
    stream: bool = Field(False, description="Answer with server-sent events: progress, then result. So does Accept.")
    keep: bool = Field(False, description="Keep the scores for a while: the answer then has an id for /v1/select.")


class SelectRequest(Selection):
    """Another selection from scores that the server has kept."""

    id: str = Field(description="The id of a result of /v1/compress with keep.")


class SpanOut(BaseModel):
    """A kept slice of a document: `document[start:end]` in Unicode code points."""

    start: int
    end: int
    score: float = Field(description="In [0, 1].")
    label: str | None = Field(description="The critic's word for it, if it has one.")


class DocumentOut(BaseModel):
    """What is left of one document."""

    text: str = Field(description="Its spans, joined by a line break; empty if nothing is left.")
    spans: list[SpanOut]
    original_chars: int
    kept_chars: int


class LeftOutOut(BaseModel):
    """Something that was to be kept and did not fit."""

    document: int
    start: int
    end: int
    reason: str


class StatsOut(BaseModel):
    """What the compression did."""

    original_chars: int
    kept_chars: int
    original_tokens: int
    kept_tokens: int
    windows: int = Field(description="How many windows the critic read.")
    skipped_windows: int = Field(description="Left unread by a prefilter, or because the critic can read no unit in them.")
    unread_units: int = Field(description="Units of a script that the critic cannot read.")
    seconds: dict[str, float] = Field(description="By step: score (with segment), select.")
    left_out: list[LeftOutOut]
    compression: float | None = Field(description="Original over kept characters; null if nothing is kept.")


class CompressedOut(BaseModel):
    """A compressed context, as `CompressedContext.to_dict` writes it."""

    id: str | None = Field(description="For /v1/select; null if it was not to be kept, or is too large for that.")
    request_id: str
    query: str
    instruction: str = Field(description="What the critic was asked.")
    text: str = Field(description="The texts of the documents that have any left, joined by a blank line.")
    documents: list[DocumentOut] = Field(description="One for each that came in, in order.")
    stats: StatsOut


class ErrorOut(BaseModel):
    """Why there is no result."""

    type: str = Field(description="A name to program against, such as ArgumentError or QueueFull.")
    argument: str | None = Field(None, description="Which argument was wrong, if it was one.")
    message: str = Field(description="What was wrong, and the way out.")
    request_id: str = Field(description="Stands in the server's log, too.")


class ErrorBody(BaseModel):
    """The body of every answer that is no result."""

    error: ErrorOut
